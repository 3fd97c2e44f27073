"""Templates whose rendering by jinja2, as transformers sets it up, is the reference."""

CONTEXT = {
    "bos_token": "<bos>",
    "n": 7,
    "x": 3.5,
    "yes": True,
    "no": False,
    "nothing": None,
    "empty": [],
    "s": "Hello, World",
    "html": "<a href=\"x\">it's & more</a>",
    "words": ["pear", "Apple", "fig", "apple", "Fig"],
    "nums": [3, 1, 2, 2.5, -4],
    "d": {"b": 2, "a": 1, "C": [1, "two", None], "items": "key"},
    "people": [
        {"name": "Zoe", "age": 7, "city": {"name": "Rome"}},
        {"name": "tom", "age": 9, "city": {"name": "oslo"}},
        {"name": "Ann", "age": 7, "city": {"name": "Rome"}},
        {"name": "Bob", "city": {"name": "Oslo"}},
    ],
    "tool": {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name"},
                    "unit": {"type": ["string", "null"], "enum": ["c", "f"]},
                    "days": {"type": "integer", "default": 1},
                },
                "required": ["city"],
            },
        },
    },
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": " Hi é🙂\n"}]},
        {"role": "assistant", "content": "Yo", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, 2.0], "b": True, "c": None}}}]},
        {"role": "tool", "content": "42", "name": "f"},
    ],
}

PRINTING = r"""
{{ ['string', 'null'] | upper }}
{{ [1, "it's", none, true, 2.0] }}
{{ {'a': 1} | dictsort }}
{{ 1e20 }} {{ 1e-7 }} {{ 1e16 }}
{{ 'a' is sequence }}
{{ 'a-b-c'.rsplit('-', 1)[0] }}{{ 'a=b'.partition('=')[2] }}
{{ '%05.2f' % 3.14159 }}
{{ [] }}{{ () }}{{ {} }}{{ (1,) }}{{ (1, 2) }}{{ 1, 2 }}
{{ d }}
{{ messages }}
{{ tool }}
{{ [d, [d]] }}
{{ ['a"b', "a'b", 'a\'b"c', 'a\nb\tc\\', 'é', '\x00\x1f\x7f', '\u200b\u2028', '🙂', '\xa0'] }}
{{ [1e16, 1e15, 123456789012345678.0, 1e-4, 1e-5, 0.1, 1/3, 100.0, -0.0, 5e-324, 1.7976931348623157e308] }}
{{ 1e400 }} {{ -1e400 }} {{ 1e400 - 1e400 }} {{ [1e400] }}
{{ 123456789012345678901234567890 }} {{ 2**64 }} {{ -2**63 }} {{ 10**30 }}
{{ true }}{{ false }}{{ none }}{{ True }}{{ False }}{{ None }}
{{ [true, false, none] }}
{{ d.items() }} {{ d.keys() }} {{ d.values() }}
{{ range(3) }} {{ range(1, 9, 2) }} {{ range(3)[1] }} {{ range(10)[2:8:3] }} {{ range(5) | list }}
{{ undefined_thing }}|{{ [undefined_thing] }}
{{ 'x' ~ 1 ~ 2.0 ~ none ~ true ~ [1, 'a'] ~ {'k': (1,)} ~ undefined_thing }}
{{ [1, none, true, 2.0, 'a', ['b']] | join(', ') }}
{{ d | join('-') }} {{ 'abc' | join('.') }} {{ [1, 2] | join }} {{ people | join(', ', attribute='name') }}
{{ [1, 'a'] | string | length }} {{ 1.0 | string }} {{ none | string }} {{ true | string | lower }}
{{ [1, 'a'] | upper }} {{ 1.5 | upper }} {{ none | lower }} {{ true | upper }} {{ 12 | title }} {{ none | capitalize }} {{ none | title }}
{{ [1, ' a '] | trim }} {{ 15 | replace(5, 6) }} {{ none | replace('N', 'n') }} {{ ['a', 'b'] | replace("'", '"') }}
{{ {'a': {'b': [1, {'c': none}]}} }}
{{ {1: 'a', 2.5: 'b', none: 'c', true: 'd', (1, 2): 'e'} }}
{{ {'a': 1, 'a': 2} }}
{{ 'a' 'b' "c" }}
{{ namespace }}
{{ range }}
{{ people | map(attribute='name') }}
{{ 'x'.upper }}
{{ cycler }}
{{ joiner(', ') }}
{{ namespace(a=1) }}
{{ loop }}
{% for i in [1, 2] %}{{ loop }}{% endfor %}
{% macro m(a, b=2) %}{{ a }}{% endmacro %}{{ m }} {{ m.name }} {{ m.arguments }}
{{ '\u00e9\x41\101\n\t\'\"\\' }}|{{ "a\qb\é" }}
{{ 'a\
b' }}
""".strip("\n").split("\n")
# The last one has a line break within its string.
PRINTING[-2:] = ["\n".join(PRINTING[-2:])]

NUMBERS = r"""
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 // -2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 7.5 % -2 }} {{ 0.0 // -3 }}
{{ 7 / 2 }} {{ 6 / 3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 2.0 ** 3 }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ 4 ** 0.5 }}
{{ 1 + 2 * 3 - 4 }} {{ (1 + 2) * 3 }} {{ 1 + true }} {{ true + true }} {{ -true }} {{ +n }} {{ - n }} {{ --n }}
{{ 1 == 1.0 }} {{ 1 == true }} {{ 0 == false }} {{ '1' == 1 }} {{ none == false }} {{ [1, 2] == (1, 2) }} {{ {'a': 1} == {'a': 1.0} }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 < 2 == 2 }} {{ 3 > 2 >= 2 != 1 }} {{ 'a' < 'b' <= 'b' }} {{ [1, 2] < [1, 3] }} {{ (1,) < (1, 0) }}
{{ 1 in [1.0] }} {{ 'a' in d }} {{ 'z' in d }} {{ 'ell' in s }} {{ 2 not in nums }} {{ 1 in (1,) }} {{ 'a' in d.keys() }} {{ 2 in range(1, 9, 3) }} {{ 4 in range(1, 9, 3) }}
{{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 1_000 }} {{ 1e3 }} {{ 1.5E-3 }} {{ 00 }}
{{ 3 | abs }} {{ -3.5 | abs }} {{ true | abs }} {{ -1|abs }} {{ (-1)|abs }}
{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 42 | round }} {{ 1234 | round(-2) }} {{ 1250 | round(-2) }} {{ 1350.0 | round(-2) }} {{ 2.1 | round(0, 'ceil') }} {{ 2.19 | round(1, 'floor') }} {{ -0.4 | round }} {{ 1e16 | round(2) }}
{{ '42' | int }} {{ '42.9' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ '0x1A' | int(base=16) }} {{ '1_0' | int }} {{ 3.99 | int }} {{ none | int }} {{ [] | int(5) }} {{ true | int }} {{ ' 5 ' | int }} {{ '-7' | int }} {{ '101' | int(0, 2) }} {{ '1e3' | int }} {{ 'inf' | int }}
{{ '3.5' | float }} {{ 'x' | float }} {{ 'x' | float(1.5) }} {{ 3 | float }} {{ none | float }} {{ 'inf' | float }} {{ 'nan' | float }} {{ '1_0.5' | float }} {{ true | float }}
{{ [1, 2, 3.5] | sum }} {{ [] | sum }} {{ [0.1, 0.2] | sum }} {{ people[:3] | sum(attribute='age') }} {{ [[1], [2]] | sum(start=[]) }} {{ [1, 2] | sum(start=10) }}
{{ nums | min }} {{ nums | max }} {{ words | min }} {{ words | max }} {{ people[:3] | max(attribute='age') }} {{ [] | max }} {{ words | max(case_sensitive=true) }}
{{ 1000000 | filesizeformat }} {{ 1 | filesizeformat }} {{ 999 | filesizeformat }} {{ 123456789 | filesizeformat(true) }}
{{ 1e20 | int }} {{ (2**53 + 1) / 1 }} {{ 2**100 }} {{ 10 // 3.0 }} {{ 5 % 3.5 }} {{ 1e308 * 10 }}
{{ (5).bit_length() }} {{ (5.0).is_integer() }} {{ n.real }} {{ n.imag }} {{ x.real }}
{{ 1 if n else 2 }} {{ 1 if not n else 2 }} {{ 'x' if no }}| {{ n and x }} {{ no or '' or 'last' }} {{ not no }} {{ not not n }}
{{ n is divisibleby 7 }} {{ n is odd }} {{ n is even }} {{ 4.0 is even }} {{ n is divisibleby(2) }} {{ n is not odd }}
{{ 5 | default(1) }} {{ q | default(1) }} {{ q | d }}| {{ '' | default('e', true) }} {{ none | default('e') }} {{ none | default('e', boolean=true) }} {{ 0 | d(3, true) }}
{{ 1.0 == 1 }} {{ 9007199254740993 == 9007199254740992.0 }} {{ 1e20 > 10**19 }}
{{ '%s' % 1 }} {{ 'a' * 3 }} {{ 3 * 'ab' }} {{ [1] * 2 }} {{ (1,) * 2 }} {{ 'a' * -1 }}| {{ [1] + [2] }} {{ (1,) + (2,) }} {{ 'a' + 'b' }}
""".strip("\n").split("\n")

FORMATS = r"""
{{ '%s and %d' % ('a', 3) }} {{ '%r' % 'it''s' }} {{ '%r' % ["a'b"] }} {{ '%x %X %#x %o %#o' % (255, 255, 255, 8, 8) }} {{ '100%%' % () }}
{{ '%5d|%-5d|%05d|%+d|% d|%+05d|%-05d|' % (42, 42, 42, 42, 42, 42, 42) }}
{{ '%d' % 3.99 }} {{ '%d' % -3.99 }} {{ '%i' % true }} {{ '%s' % none }} {{ '%s' % [1, 'a'] }} {{ '%s' % {'a': 1} }} {{ '%s' % 2.0 }} {{ '%u' % 5 }}
{{ '%f %.2f %.0f %5.1f|%-8.3f|%08.3f %+.1f' % (1.5, 2.675, 2.5, 3.14159, 3.14159, -3.14159, 2.0) }}
{{ '%e %.2e %E %g %g %g %g %G %.3g %#g %#.0f %#.0e' % (12345.678, 0.00012, 1e10, 1e10, 0.0001, 0.00001, 123456789, 1e-10, 1234.5, 1.0, 2.0, 3.0) }}
{{ '%.3s|%10s|%-10s|%10.2s|' % ('abcdef', 'abc', 'abc', 'abc') }} {{ '%c%c' % ('x', 65) }} {{ '%a' % 'é' }}
{{ '%(name)s is %(age)03d' % {'name': 'Zoe', 'age': 7} }} {{ '%(a)s%%' % {'a': 1, 'b': 2} }}
{{ '%*d|%-*d|%.*f' % (5, 42, 5, 42, 2, 3.14159) }} {{ '%ld %hd' % (1, 2) }}
{{ '%s' % (1, 2) }}
{{ '%s %s' % 1 }}
{{ '%d' % 'a' }}
{{ '%q' % 1 }}
{{ '%(a)s' % 1 }}
{{ '%(z)s' % {'a': 1} }}
{{ 'abc' % 1 }}
{{ 'abc' % {'a': 1} }} {{ 'abc' % [] }} {{ 'abc' % () }}
{{ '%s' % (('a', 'b'),) }} {{ '%f' % 1e400 }} {{ '%d' % 10**20 }} {{ '%5.1f%%' % 99.55 }} {{ '%+x' % -255 }} {{ '%.5d' % 42 }} {{ '%#X' % 255 }} {{ '%05s' % 'a' }}
{{ '%s, %s!' | format('a', 1) }} {{ '%(a)s' | format(a=1) }} {{ '%.1f' | format(x) }}
{{ '{} {}'.format(1, 'a') }} {{ '{1} {0}'.format('a', 'b') }} {{ '{a} {b}'.format(a=1, b=[1]) }} {{ '{{}} {}'.format(1) }}
{{ '{:5}|{:<5}|{:>5}|{:^5}|{:*^7}|{:05}|{:+}|{: }'.format('a', 'a', 'a', 'a', 'a', 42, 42, 42) }}
{{ '{:.2f} {:8.3f} {:,} {:_} {:,.2f} {:e} {:g} {:%} {:.1%} {:x} {:#x} {:b} {:o} {:c} {:d} {:n}'.format(3.14159, 3.14159, 1234567, 1234567, 1234567.891, 12345.678, 0.0001, 0.25, 0.256, 255, 255, 5, 8, 65, 42, 42) }}
{{ '{!r} {!s} {!a}'.format('a', 'b', 'é') }} {{ '{0[a]} {0[b]}'.format(d) }} {{ '{0[1]}'.format([1, 2]) }} {{ '{:{}}|'.format('a', 5) }} {{ '{:>{w}.{p}f}|'.format(3.14159, w=8, p=2) }}
{{ '{}'.format(none) }} {{ '{}'.format(true) }} {{ '{:d}'.format(true) }} {{ '{:5}|'.format(true) }} {{ '{}'.format([1, 'a']) }} {{ '{:s}'.format('a') }} {{ '{:.2}'.format('abc') }} {{ '{:=+5}'.format(3) }} {{ '{:<5}|'.format(3) }} {{ '{:05.1f}'.format(-2.5) }} {{ '{:5}|'.format(2.5) }} {{ '{:f}'.format(2) }}
{{ '{a}'.format_map({'a': 1}) }} {{ '{0.real}'.format(5) }}
{{ '{} {0}'.format(1) }}
{{ '{}'.format() }}
{{ '{a}'.format() }}
{{ '{'.format() }}
{{ '}'.format() }}
{{ '{:d}'.format('a') }}
{{ '{:q}'.format(1) }}
{{ '{:5}'.format([]) }}
{{ '{:5}'.format(none) }}
""".strip("\n").split("\n")

STRINGS = r"""
{{ s.upper() }} {{ s.lower() }} {{ s.title() }} {{ s.capitalize() }} {{ s.swapcase() }} {{ 'ß ǆ ﬁx straße'.title() }} {{ 'ΑΣ ΟΔΟΣ'.lower() }} {{ "they're bill's".title() }} {{ 'éa'.capitalize() }} {{ 'Straße'.casefold() }} {{ 'a1b2 c3'.title() }}
{{ "they're bill's (x) [y] {z} <w> a-b\tq" | title }} {{ 'hello WORLD' | title }} {{ 'fOO bAR' | capitalize }}
{{ '  a b  '.strip() }}|{{ '  a '.lstrip() }}|{{ ' a  '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abcba'.strip('ab') }}|{{ 'xa'.lstrip('x') }}|{{ ' a ' | trim }}|{{ 'xax' | trim('x') }}|{{ '\x1c\u2003a\x85'.strip() }}|
{{ 'a,b,c'.split(',') }} {{ 'a,b,c'.split(',', 1) }} {{ ' a  b '.split() }} {{ ' a  b c '.split(none, 1) }} {{ 'a b c'.split(maxsplit=1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ' a b  c '.rsplit(none, 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ 'a'.split(sep='b') }} {{ 'a,b'.split(',', 0) }} {{ 'abc'.split('') }}
{{ 'a,b,c'.rsplit(',') }} {{ ' a  b '.rsplit() }} {{ '  a b  '.split(none, 0) }} {{ '  a b  '.rsplit(none, 0) }}
{{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('=') }} {{ 'abc'.rpartition('=') }}
{{ 'a\nb\r\nc\x0bd\u2028e'.splitlines() }} {{ 'a\nb\n'.splitlines(true) }} {{ ''.splitlines() }} {{ 'a\n\nb'.splitlines(keepends=true) }}
{{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.txt'.removesuffix('.txt') }} {{ 'x'.removeprefix('y') }} {{ 'x'.removesuffix('') }}
{{ '42'.zfill(5) }} {{ '-42'.zfill(5) }} {{ '+4'.zfill(4) }} {{ 'a'.center(5) }}| {{ 'ab'.center(5, '*') }} {{ 'ab'.center(6, '*') }} {{ 'a'.center(4, '*') }} {{ 'a'.ljust(3) }}| {{ 'a'.rjust(3, '0') }} {{ 'a' | center(5) }}| {{ 'ab' | center(7) }}|
{{ 'hello'.find('l') }} {{ 'hello'.rfind('l') }} {{ 'hello'.find('z') }} {{ 'hello'.index('e') }} {{ 'héllo'.find('l') }} {{ 'hello'.find('l', 3) }} {{ 'hello'.find('', 9) }} {{ 'hello'.find('l', -2) }} {{ 'hello'.count('l') }} {{ 'hello'.count('') }} {{ 'aaa'.count('aa') }} {{ 'hello'.count('l', 3) }}
{{ 'hello'.index('z') }}
{{ 'hello'.startswith('he') }} {{ 'hello'.startswith(('x', 'h')) }} {{ 'hello'.endswith('lo') }} {{ 'hello'.startswith('l', 2) }} {{ 'hello'.endswith('l', 0, 4) }} {{ 'hello'.startswith('') }} {{ 'hello'.startswith('', 9) }}
{{ 'hello'.replace('l', 'L') }} {{ 'hello'.replace('l', 'L', 1) }} {{ 'aaa'.replace('', '-') }} {{ 'aaa'.replace('', '-', 2) }} {{ 'hello' | replace('l', 'L', 1) }} {{ 'aaa' | replace('a', 'b', count=2) }}
{{ ', '.join(['a', 'b']) }} {{ '-'.join('abc') }} {{ ''.join([]) }}| {{ ','.join(d) }} {{ ','.join({'x': 1}.keys()) }}
{{ ','.join([1]) }}
{{ 'abc'.isalpha() }} {{ 'ab1'.isalnum() }} {{ '12'.isdigit() }} {{ '1.2'.isdigit() }} {{ ''.isdigit() }} {{ 'é'.isalpha() }} {{ ' '.isspace() }} {{ ''.isspace() }} {{ 'Ab C'.istitle() }} {{ 'abc'.islower() }} {{ 'ABC1'.isupper() }} {{ '1'.isupper() }} {{ 'a_1'.isidentifier() }} {{ '1a'.isidentifier() }} {{ 'a\n'.isprintable() }} {{ 'é'.isascii() }} {{ '٣'.isdecimal() }} {{ '12'.isnumeric() }}
{{ 'a\tb\tc'.expandtabs(4) }} {{ 'a\tb'.expandtabs() }}
{{ s[0] }} {{ s[-1] }} {{ s[1:4] }} {{ s[::-1] }} {{ s[::2] }} {{ s[-3:] }} {{ s[:-3] }} {{ s[5:2] }}| {{ s[10:100] }} {{ s[-100:2] }} {{ 'héllo🙂'[-1] }} {{ 'héllo🙂'[1:] }} {{ s[8:2:-2] }}
{{ nums[1:3] }} {{ nums[::-1] }} {{ nums[-2:] }} {{ nums[:] }} {{ nums[::2] }} {{ (1, 2, 3)[1:] }} {{ nums[100] }}| {{ nums[-1] }} {{ nums[true] }} {{ nums['a'] }}| {{ s['x'] }}| {{ nums[3:0:-1] }} {{ nums[-100::-1] }}
{{ s[100] }}|{{ 'abc'.0 }} {{ nums.1 }} {{ nums[0:2][1] }} {{ 'a.b'.split('.')[1] }} {{ d['C'][1] }} {{ d.C[-2] }}
{{ 'abc' | list }} {{ 'abc' | length }} {{ 'abc' | first }} {{ 'abc' | last }} {{ 'abc' | reverse }} {{ 'héllo' | length }} {{ 'abc' | count }}
{{ 'one two three' | wordcount }} {{ "it's a_b é-x" | wordcount }} {{ 'a\nb\n\nc' | indent }}| {{ 'a\nb' | indent(2, true) }} {{ 'a\n\nb' | indent(2, blank=true) }} {{ 'a\nb' | indent('> ') }} {{ 'a\nb\n' | indent(2) }}|
{{ 'foo bar baz qux' | truncate(9) }} {{ 'foo bar baz qux' | truncate(9, true) }} {{ 'foo bar baz qux' | truncate(11) }} {{ 'foo bar baz qux' | truncate(11, false, '...', 0) }}
{{ html | e }} {{ html | escape | string }} {{ html | forceescape }} {{ '<' | safe }} {{ html | e | length }} {{ ('<' | e) ~ '<' }} {{ '<' | e | e }} {{ '<' | e | forceescape }} {{ ['<' | e] }} {{ '<' | e is escaped }} {{ '<' is escaped }}
{{ {'class': 'a b', 'id': none, 'x': '<'} | xmlattr }}| {{ {'a': 1} | xmlattr(false) }} {{ 'a b/c?é' | urlencode }} {{ {'a b': 'c&d', 'e': 1} | urlencode }} {{ [('a', 1), ('b', '/')] | urlencode }}
{{ ('<' | e) + '<' }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ 'a' - 'b' }}
{{ [] + () }}
{{ 'a' < 1 }}
{{ none < 1 }}
{{ 1 in 5 }}
{{ 1 in 'a' }}
{{ none.x.y }}
{{ q.x }}
{{ q.x.y }}
{{ q() }}
{{ q + 1 }}
{{ -q }}
{{ q | int }}
{{ q | upper }}| {{ q | length }} {{ q | list }} {{ q | join }}| {{ q == q2 }} {{ q != 1 }} {{ 1 in q }} {{ q | first }}| {{ q is iterable }} {{ q is sequence }} {{ q is mapping }} {{ q | tojson is defined }}
{{ q | trim }}|{{ q | replace('a', 'b') }}|{{ q | string }}|{{ q and 1 }}|{{ not q }}|{{ q | map('upper') | list }}|{{ q | items | list }}
{{ none | length }}
{{ 5 | list }}
{{ 5 | length }}
{{ 'a'.nope }}| {{ 'a'.nope is defined }} {{ d.nope }}| {{ d['nope'] }}| {{ d.items }}
{{ 'a'.nope() }}
{{ 1 / 0 }}
{{ 1 % 0 }}
{{ 1.0 // 0 }}
{{ 'x'.encode() }}
{{ 'x'.__class__ }}|{{ d.__class__.__name__ }}
{{ nums.append(1) }}
{{ nums.append }}|{{ d.update is defined }}|{{ d.pop }}
{{ d.pop('a') }}
{{ {[1]: 2} }}
{{ {'a': 1}[[]] }}|
{{ [3, 'a'] | sort }}
{{ nums | nope }}
{{ 1 is nope }}
{{ nope(1) }}
{{ raise_exception('stop: ' ~ [1, 'a']) }}
{{ range(10**6) | length }}
{{ nums.sort() }}
{{ lipsum() }}
{{ 'a'.upper(1) }}
{{ 'a'.replace('a') }}
{{ 'a'.split(',', 1, 2) }}
{{ 'a'.split(foo=1) }}
{{ s | replace('a') }}
{{ [1] | batch }}
""".strip("\n").split("\n")

LISTS = r"""
{{ words | sort }} {{ words | sort(case_sensitive=true) }} {{ words | sort(reverse=true) }} {{ nums | sort }} {{ people | map(attribute='name') | sort }} {{ people[:3] | sort(attribute='age') | map(attribute='name') | list }} {{ people[:3] | sort(attribute='age,name', reverse=true) | map(attribute='name') | list }} {{ people | sort(attribute='city.name') | map(attribute='name') | list }}
{{ d | dictsort }} {{ d | dictsort(true) }} {{ {'a': 2, 'b': 1} | dictsort(by='value') }} {{ {'a': 2, 'b': 1} | dictsort(false, 'key', true) }}
{{ words | unique | list }} {{ words | unique(true) | list }} {{ people[:3] | unique(attribute='age') | map(attribute='name') | list }} {{ [1, 1.0, true, 2] | unique | list }}
{{ people | selectattr('age') | map(attribute='name') | list }} {{ people | rejectattr('age', 'defined') | map(attribute='name') | list }} {{ people | selectattr('age', 'equalto', 7) | list | length }} {{ people | selectattr('age', '==', 9) | map(attribute='name') | first }} {{ people[:3] | selectattr('age', 'gt', 7) | list | length }} {{ people | selectattr('city.name', 'in', ['Rome']) | list | length }}
{{ nums | select('odd') | list }} {{ nums | reject('gt', 2) | list }} {{ [0, 1, '', 'a'] | select | list }} {{ nums | select('number') | list }} {{ ['a', 1] | select('string') | list }} {{ [1, none] | reject('none') | list }}
{{ words | map('upper') | list }} {{ words | map('replace', 'p', 'P') | join(' ') }} {{ people | map(attribute='age', default=0) | list }} {{ people | map(attribute='city.name') | join('/') }} {{ [[1, 2], [3]] | map('first') | list }} {{ [1.55, 2.45] | map('round', 1) | list }} {{ people | map('attr', 'name') | list }} {{ [[1, 2]] | map(attribute=0) | list }} {{ [[1, 2]] | map(attribute='1') | list }}
{% for g in people | groupby('city.name') %}{{ g.grouper }}:{{ g.list | map(attribute='name') | join(',') }}{{ g[0] }};{% endfor %}
{{ people[:3] | groupby('age') | map('first') | list }} {% for k, v in people | groupby('age', default=0) %}{{ k }}={{ v | length }} {% endfor %}{{ [{'a': 1}] | groupby('a') }} {{ people | groupby('city.name', case_sensitive=true) | map(attribute='grouper') | list }}
{{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | batch(2, 'x') | list }} {{ [1, 2, 3, 4, 5] | slice(3) | list }} {{ [1, 2, 3, 4] | slice(3, 'x') | list }} {{ [] | batch(2) | list }} {{ [1] | batch(0) | list }}
{{ nums | first }} {{ nums | last }} {{ [] | first }}| {{ d | first }} {{ d | last }} {{ nums | reverse | list }} {{ d | reverse | list }} {{ d | items | list }} {{ d | list }} {{ d | length }} {{ d.values() | list }} {{ (1, 2) | last }} {{ range(3) | last }}
{{ d.get('a') }} {{ d.get('z') }} {{ d.get('z', 5) }} {{ d.a }} {{ d['a'] }} {{ d.items is defined }} {{ d['items'] }} {{ d.keys() | list }} {{ d.items() | list | first }} {{ d.copy() == d }} {{ d.values() | length }} {{ ('a', 1) in d.items() }}
{{ nums.index(2) }} {{ nums.count(2) }} {{ (1, 2, 1).count(1) }} {{ nums.copy() }} {{ [1, 2] | length }} {{ nums.index(99) }}
{{ dict(a=1, b=[2]) }} {{ dict([('a', 1)]) }} {{ dict({'x': 1}, y=2) }} {{ dict() }} {{ dict.fromkeys(['a', 'b'], 0) }}
{{ [1, 2] is sequence }} {{ d is sequence }} {{ d is mapping }} {{ 'a' is string }} {{ 1 is number }} {{ true is number }} {{ true is boolean }} {{ 1 is boolean }} {{ 1 is integer }} {{ true is integer }} {{ 1.0 is float }} {{ 1 is float }} {{ none is none }} {{ [] is iterable }} {{ 1 is iterable }} {{ 'a' is iterable }} {{ d.items() is sequence }} {{ d.items() is iterable }} {{ range(2) is sequence }} {{ nums | map('abs') is iterable }} {{ (1,) is sequence }} {{ none is mapping }} {{ none is sequence }} {{ none is iterable }}
{{ true is true }} {{ 1 is true }} {{ false is false }} {{ 0 is false }} {{ 1 is eq 1 }} {{ 1 is eq(1.0) }} {{ 1 is ne 2 }} {{ 1 is lt 2 }} {{ 2 is le 2 }} {{ 3 is greaterthan 2 }} {{ 1 is in [1, 2] }} {{ 'a' is in 'abc' }} {{ 3 is not in [1] }} {{ none is sameas none }} {{ true is sameas true }} {{ 1 is sameas true }} {{ n is sameas n }} {{ 'abc' is lower }} {{ 'ABC' is upper }} {{ 'upper' is filter }} {{ 'nope' is filter }} {{ 'odd' is test }} {{ range is callable }} {{ 'a' is callable }} {{ 'a'.upper is callable }}
{{ x is defined }} {{ q is defined }} {{ q is undefined }} {{ x is not defined }} {{ d.a is defined }} {{ d.z is defined }} {{ q is none }} {{ d.a is defined and d.a > 0 }} {{ messages[0].content is string }} {{ messages[1].content is string }} {{ messages[1].content is iterable and messages[1].content is not string }}
{{ nothing is none if yes else 1 }}
{{ 'a' if nothing is none else 'b' }}
{{ [1, 2, 3] | tojson }} {{ d | tojson }} {{ (1, 'é') | tojson }} {{ {'b': 1, 'a': [1.0, none, true]} | tojson(indent=2) }} {{ 'é' | tojson(ensure_ascii=true) }} {{ d | tojson(sort_keys=true) }} {{ [1, {'a': 2}] | tojson(separators=(',', ':')) }} {{ [1] | tojson(indent=0) }} {{ [1] | tojson(indent='--') }} {{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }} {{ 1e400 | tojson }} {{ [] | tojson(indent=2) }}{{ {} | tojson(indent=2) }} {{ '</script>\u2028' | tojson }} {{ '\x7f\x00' | tojson }} {{ tool | tojson }}
{{ q | tojson }}
{{ range(3) | tojson }}
{{ d.items() | tojson }}
{{ nums | map('abs') | tojson }}
{% set g = words | map('upper') %}{{ g | list }}{{ g | list }} {% set g = nums | select('odd') %}{{ g | first }}{{ g | list }}
{{ people | map(attribute='name') | length }}
{{ nums | map('abs') | last }}
{{ (nums | map('abs'))[0] }}|
{{ nums | random is defined }}
{{ people | attr('x') is defined }} {{ 'a' | attr('upper') is defined }} {{ d | attr('a') is defined }} {{ ('a' | attr('upper'))() }}
{{ people | map('nope') | list }}
{{ people | map(attribute='name', foo=1) | list }}
{{ people | selectattr | list }}
""".strip("\n").split("\n")

STATEMENTS = [
    "a\n  {% if true %}\nb\n  {% endif %}\nc\n",
    "{% if yes %}a{% elif no %}b{% else %}c{% endif %}{% if no %}a{% elif n %}b{% else %}c{% endif %}{% if no %}a{% else %}c{% endif %}",
    "{% for i in nums %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}|{% endfor %}",
    "{% for i in [1, 1, 2] %}{{ loop.previtem }},{{ loop.nextitem }},{{ loop.changed(i) }},{{ loop.cycle('a', 'b') }};{% endfor %}",
    "{% for i in nums if i > 1 %}{{ i }}:{{ loop.index }}/{{ loop.length }}{{ ', ' if not loop.last }}{% else %}none{% endfor %}{% for i in [] %}{% else %}empty{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for c in 'héy' %}[{{ c }}]{% endfor %}{% for i in range(3) %}{{ i }}{% endfor %}{% for q in undefined_thing %}x{% else %}y{% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in range(3) %}{% for j in range(3) %}{% if j == 1 %}{% break %}{% endif %}{{ i }}{{ j }} {% endfor %}{% endfor %}",
    "{% for i in [1, 2] %}{% break %}{% else %}none{% endfor %}",
    "{% for i in [1, 2] %}{% continue %}{% else %}none{% endfor %}{% for i in [1, 2] %}{% if i == 2 %}{% break %}{% endif %}{% else %}none{% endfor %}",
    "{% for i in [1, 2] %}{% for j in [] %}{% else %}{% break %}{% endfor %}{{ i }}{% endfor %}",
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(x=1, y='a') %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.z }}|{{ ns['x'] }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a + ns.b }}{% set ns.c = 3 %}{{ ns.c }}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{% set d2 = {} %}{% set d2.x = 1 %}",
    "{% if true %}{% set y = 5 %}{% endif %}{{ y }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (a, b) = [b, a] %}{{ a }}{{ b }}{% set t = 1, 2 %}{{ t }}",
    "{% set a, b = [1] %}",
    "{% set a, b = [1, 2, 3] %}",
    "{% set x %}a {{ n }} b{% endset %}[{{ x }}]{% set y | upper | replace('A', 'b') %} ab {% endset %}[{{ y }}]",
    "{% set x %}{% set inner = 1 %}{{ inner }}{% endset %}{{ x }}{{ inner is defined }}",
    "{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, 3) }} {{ m(c=5, a=0) }} {{ m() }}|{{ m(*[7, 8]) }} {{ m(**{'a': 1, 'b': 9}) }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(z=2) }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}",
    "{% macro m(a) %}[{{ a }}{{ caller() }}]{% endmacro %}{% call m(1) %}body{{ n }}{% endcall %}",
    "{% macro m() %}{{ caller(1, b=2) }}{% endmacro %}{% call(a, b, c=3) m() %}{{ a }}{{ b }}{{ c }}{% endcall %}",
    "{% macro m() %}x{% endmacro %}{% call m() %}y{% endcall %}",
    "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}{% call m() %}{% endcall %}",
    "{% macro m() %}{{ late }}{% endmacro %}{% set late = 'L' %}{{ m() }}",
    "{% for i in [1] %}{% set inner = i %}{% macro m() %}{{ inner }}{{ i }}{% endmacro %}{{ m() }}{% endfor %}{{ m is defined }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{% macro m() %}  a\n{% endmacro %}[{{ m() | trim }}]{{ m() is string }}{{ m() ~ 'x' }}",
    "{% macro m(x) %}{% set x = 5 %}{{ x }}{% endmacro %}{{ m(1) }}{{ x }}",
    "{% filter upper %}a{{ s }}{% endfilter %}{% filter replace('a', 'b') | upper %}banana{% endfilter %}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}{% set a = 5 %}{% with a = 1, b = a %}{{ b }}{% endwith %}{% with %}{% set z = 3 %}{{ z }}{% endwith %}{{ z is defined }}",
    "{% block title %}T{{ n }}{% set w = 1 %}{% endblock %}{{ w is defined }}",
    "{% raw %}{{ n }}{% if %}{% endraw %} {%- raw -%}  x  {%- endraw -%}  y",
    "a\n  {% raw %}\nb\n  {% endraw %}\nc",
    "a{# comment {{ n }} {% if %} #}b\n  {# c #}\nd {#- x -#} e",
    "{#-#}a{#- -#} b {#+ c +#} d",
    "a  {{- n -}}  b  {%- if true -%}  c  {%- endif -%}  d",
    "  {%+ if true %}x{% endif +%}\ny\n  {%- if true %}\nz{% endif %}",
    "a\n\n  {%- if true %}b{% endif -%}\n\n c",
    "a\r\nb\rc\n{{ '\r\n' | length }}",
    "{{ n }}\n\n",
    "{{ n }}\n",
    "\n{% if true %}\n\nx\n\n{% endif %}\n\n",
    "{% for i in [1, 2] %}\n  {{ i }}\n{% endfor %}\nend",
    "{%- for i in [1, 2] -%}\n  {{ i }}\n{%- endfor -%}\nend",
    "\t {% if true %}a{% endif %}  \t{% if true %}b{% endif %}",
    "{{ {'a': {'b': 1}}['a']['b'] }}{{ {'a': {}} }}{{ {'}}': '%}'} }}{{ '{{' ~ '}}' }}{% if '%}' %}x{% endif %}",
    "{{- ' a ' -}}{{ '-' }}{{-1}}{{ -1 }}{{+1}}",
    "{% for i in [[1, [2, []]], [3, []]] recursive %}{{ i[0] }}{{ loop.depth }}{% if i[1] %}({{ loop([i[1]]) }}){% endif %}{% endfor %}",
    "{% for i in [1] %}{{ loop([2]) }}{% endfor %}",
    "{% for loop in [1] %}{% endfor %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.current }}",
    "{% set j = joiner('; ') %}{% for i in [1, 2, 3] %}{{ j() }}{{ i }}{% endfor %}",
    "{% set ns = namespace(found=false) %}{% for m in messages if not ns.found %}{{ m.role }}{% if m.role == 'user' %}{% set ns.found = true %}{% endif %}{% endfor %}",
    "{% print 1, 'a' %}{% print (1, 2) %}",
    "{% autoescape false %}{{ html }}{% endautoescape %}",
    "{% if true: %}x{% endif %}",
    "{% if x is not none and x > 3 or false %}a{% endif %}{% if not x == 3 %}b{% endif %}{% if x in [3.5] and not no %}c{% endif %}",
    "{{ 1 if true else 2 if true else 3 }}{{ (1 if no else 2) if yes else 3 }}{{ 'a' if no else 'b' if no else 'c' }}",
    "{{ n | string | length + 1 }}{{ -n | abs }}{{ not n is none }}{{ 1 + n | string | int }}{{ 'a' ~ n + 1 }}{{ 2 * 3 ~ 4 }}{{ 2 ~ 3 * 4 }}",
    "{{ (messages | selectattr('role', 'equalto', 'user') | list)[0].content[0].text }}",
    "{{ messages[2].tool_calls[0].function.arguments | tojson }} {{ messages[2].tool_calls[0]['function'].arguments }} {{ messages[-1]['content'] }}",
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text | trim }}{% endfor %}{% endif %}|{% endfor %}",
    "{% for k, v in tool.function.parameters.properties | dictsort %}{{ k }}:{{ v['type'] | upper }}{{ v.enum | default([]) | join('|') }}{{ v.default }} {% endfor %}",
    "{%- set loop_messages = messages[1:] if messages[0]['role'] == 'system' else messages -%}{{ loop_messages | length }}{{ loop_messages[0].role }}",
    "{{ messages | map(attribute='role') | join(',') }}{{ messages | rejectattr('role', 'in', ['system', 'tool']) | map(attribute='role') | list }}",
    "{% include 'x' %}",
    "{% if false %}{% include 'x' %}{% endif %}ok",
    "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "{% endif %}",
    "{% if true %}x",
    "{% for i in %}{% endfor %}",
    "{{ 1 + }}",
    "{{ }}",
    "{{ n",
    "{% nope %}",
    "{{ 'a }}",
    "{# open",
    "{% raw %} x",
    "{{ [1, 2 }}",
    "{{ (1 }}",
    "{{ 1 ! 2 }}",
    "{% set %}",
    "{% set 1 = 2 %}",
    "{% break %}",
    "{% for i in [1] %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}",
    "{% do nums.append(1) %}",
    "{{ x is none is none }}",
    "{{ f(1 2) }}",
    "{{ f(a=1, 2) }}",
    "{{ 1 2 }}",
    "{{ n.1x }}",
    "{% if n = 1 %}{% endif %}",
    "{{ nums[1,2] }}|",
    "{% set x = 1 %}{% block b %}{{ x }}{% endblock %}",
    "{{ self.b() }}{% block b %}B{% endblock %}",
    "{{ '%s' % (1 if yes else 2) }}{{ '%s%s' % ('a', 'b') | upper }}{{ ('%s' % 'a') | upper }}",
    "{%if yes%}a{%endif%}{{n}}{{ n}}{%for i in [1]%}{{i}}{%endfor%}",
    "{{ d.C | length }}{{ d.C | join(',') }}{{ d['C'][1:] }}{{ d.C.index('two') }}",
    "{{ strftime_now('%Y') | length }}{{ strftime_now('%d %b') | length }}",
    "{% macro a() %}{% for i in [1, 2] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}{% endmacro %}{{ a() }}",
    "{{ people[0].city['name'] }}{{ people[0]['city'].name }}{{ people.0.name }}",
    "{{ [1, 2, 3][1:] + [4] }}{{ ([1] + [2]) | length }}{{ {'a': 1}.items() | list + [1] }}",
    "{{ 'yes' if 'a' in d and d.a == 1 else 'no' }}{{ 'yes' if d.zzz else 'no' }}{{ d.zzz.y if d.zzz else 'no' }}",
]

GENERATION = [
    "a{% generation %}b{{ n }}{% endgeneration %}c",
    "a {%- generation -%}  b  {%- endgeneration -%} c",
    "a\n  {% generation %}\nb\n  {% endgeneration %}\nc",
    "a\n  {%+ generation +%}\nb\n  {%+ endgeneration +%}\nc",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ loop.index }}{% endgeneration %}{% endif %}{% endfor %}",
    "{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% set x = 0 %}{% generation %}{{ x }}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% set ns = namespace(x=0) %}{% generation %}{% set ns.x = 1 %}{% endgeneration %}{{ ns.x }}",
    "{% generation %}{% for i in [1, 2] %}{{ i }}{% endfor %}{% endgeneration %}{% generation %}{% endgeneration %}",
    "{% generation %}a{% generation %}b{% endgeneration %}c{% endgeneration %}",
    "{% raw %}{% generation %}{% endraw %}{# {% generation %} #}{{ '{% generation %}' }}{% set s = '{% endgeneration %}' %}{{ s }}",
    "{% generation %}a",
    "a{% endgeneration %}",
    "{% generation x %}a{% endgeneration %}",
    "{% for i in [1, 2] %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    "{% macro m() %}{% generation %}in{% endgeneration %}{% endmacro %}{{ m() }}{{ generation }}{{ generation is defined }}",
    "{% macro m() %}{% generation %}{{ caller() }}{% endgeneration %}{% endmacro %}{% call m() %}x{% endcall %}",
    "{% generation %}{{ caller is defined }}{{ varargs }}{{ kwargs }}{% endgeneration %}",
    "{%-generation-%} a {%-endgeneration-%}",
    "{% set y %}{% generation %}z{% endgeneration %}{% endset %}[{{ y }}]",
    "{% if false %}{% generation %}{{ 1 / 0 }}{% endgeneration %}{% endif %}ok",
    "{% generation %}\n\n{{ 1 / 0 }}{% endgeneration %}",
]

EXPRESSIONS = PRINTING + NUMBERS + FORMATS + STRINGS + LISTS
TEMPLATES = EXPRESSIONS + STATEMENTS + GENERATION
