//! Windowed full attention: the reference while everything fits, and what is lost beyond.

use std::path::Path;

use crate::cases::*;
use crate::equal::{OTHER_ORDER, difference};
use crate::fixtures::fixture;

/// Contexts asked, unless `RECALL_CONTEXTS` says how many of the 125 far ones.
const CONTEXTS: usize = 8;

/// Positions that full layers keep in the experiment; the last holds every context whole.
const WINDOWS: [usize; 6] = [64, 224, 256, 288, 320, 384];

/// Longest context of nano's recall set, with its question.
const LONGEST: usize = 384;

struct Ask {
    ids: Vec<u32>,
    key: u32,
    value: u32,
    /// Positions from the value back in the notes to the key that is asked.
    distance: usize,
}

/// The first question of each far context.
fn asks(nano: &Path) -> Vec<Ask> {
    let text = std::fs::read_to_string(nano.join("recall.jsonl")).unwrap();
    let rows = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let id = |v: &serde_json::Value| v.as_u64().unwrap() as u32;
    rows.filter(|row| row["kind"] == "far")
        .map(|row| Ask {
            ids: row["ids"].as_array().unwrap().iter().map(id).collect(),
            key: id(&row["asks"][0]["key"]),
            value: id(&row["asks"][0]["value"]),
            distance: row["asks"][0]["distance"].as_u64().unwrap() as usize,
        })
        .collect()
}

/// Until position FW the full layers see all there is; from there on they do not.
#[test]
fn windowed_full_attention_is_full_attention_until_its_window() {
    const WINDOW: usize = 40;
    for fixture in all_fixtures() {
        let windowed = made(&fixture, &format!("wfa-{WINDOW}"));
        let (mut wfa, mut full) = (decoder(&windowed), decoder(&made(&fixture, "swa4-fp16")));
        let mut beyond = 0f32;
        for position in 0..WINDOW + 40 {
            let token = 2 + (position as u32 * 37) % 200;
            let logits = [&mut wfa, &mut full].map(|d| {
                vec![
                    d.step(token).unwrap().kept["logits"]
                        .as_f32()
                        .unwrap()
                        .to_vec(),
                ]
            });
            if position < WINDOW {
                // Masked slots weigh exactly nothing, but sums over another length are taken in another order.
                let worst = difference(&logits[0], &logits[1]);
                assert!(
                    worst <= OTHER_ORDER,
                    "{} position {position}: {worst}",
                    name(&fixture)
                );
            } else {
                beyond = beyond.max(difference(&logits[0], &logits[1]));
            }
        }
        assert!(beyond > 0.01, "{}: {beyond}", name(&fixture));
    }
}

/// The share of facts recalled for each window: while the fact lies inside, and when it lies outside.
#[test]
fn recall_is_lost_beyond_the_window() {
    let nano = fixture("nano");
    let count = std::env::var("RECALL_CONTEXTS").ok();
    let count = count.map_or(CONTEXTS, |n| {
        n.parse().expect("RECALL_CONTEXTS is a number")
    });
    let asks: Vec<Ask> = asks(&nano).into_iter().take(count).collect();
    assert!(asks.len() >= CONTEXTS);
    println!("| FW | recalled | of those inside FW | of those outside |");
    println!("|---|---|---|---|");
    let mut last = [0; 2];
    for window in WINDOWS {
        let recipe = unquantized(&format!("wfa-{window}"));
        let bundle = bundle_of(&nano, &recipe, &format!("wfa-{window}"), LONGEST).unwrap();
        let mut decoder = decoder(&bundle);
        // Recalled and asked, inside and outside of the window.
        let mut right = [[0usize; 2]; 2];
        for ask in &asks {
            decoder.reset();
            for &id in &ask.ids {
                decoder.step(id).unwrap();
            }
            let answer = decoder.step(ask.key).unwrap().token_id;
            // The key stands one position before its value.
            let outside = usize::from(ask.distance + 1 >= window);
            right[outside][0] += usize::from(answer == ask.value);
            right[outside][1] += 1;
        }
        let share = |[right, of]: [usize; 2]| format!("{right}/{of}");
        let all = [right[0][0] + right[1][0], right[0][1] + right[1][1]];
        println!(
            "| {window} | {} | {} | {} |",
            share(all),
            share(right[0]),
            share(right[1])
        );
        last = all;
        let [[inside, of_inside], [outside, of_outside]] = right;
        assert!(
            inside * 4 >= of_inside * 3,
            "forgotten inside {window}: {right:?}"
        );
        assert!(
            outside * 4 <= of_outside,
            "recalled from outside {window}: {right:?}"
        );
    }
    assert_eq!(last[0], last[1], "with all in sight");
}
