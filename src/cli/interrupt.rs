//! Signals. Ctrl-C: exit code 130. What is on disk stays: conversions and downloads go on from there.

/// Makes SIGINT end the program with code 130, and a file size limit (`ulimit -f`) an error of the write that meets it, not
/// a signal that ends the program.
#[cfg(unix)]
pub fn install() {
    extern "C" fn on_interrupt(_signal: libc::c_int) {
        const LINE: &[u8] = b"\nerror: interrupted\n";
        // SAFETY: `write` and `_exit` are async-signal-safe; the buffer is static.
        unsafe {
            libc::write(libc::STDERR_FILENO, LINE.as_ptr().cast(), LINE.len());
            libc::_exit(130);
        }
    }
    let handler: extern "C" fn(libc::c_int) = on_interrupt;
    // SAFETY: the handler calls async-signal-safe functions only and lives as long as the program; ignoring a signal has no
    // preconditions.
    unsafe {
        libc::signal(libc::SIGINT, handler as libc::sighandler_t);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// The platform's own handling stays.
#[cfg(not(unix))]
pub fn install() {}
