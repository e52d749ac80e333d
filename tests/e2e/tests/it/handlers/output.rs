//! Output without end, without lines, and without text.

use serde_json::{Value, json};

use super::{Bench, FUNCTION, Then, event};

/// What of one invocation's output is kept.
const KEPT: usize = 256 << 10;

fn find(log: &[u8], text: &[u8]) -> Option<usize> {
    log.windows(text.len()).position(|window| window == text)
}

/// The most memory that each of the server's own processes ever had, kB.
fn peaks(bench: &Bench) -> Vec<u64> {
    let processes = bench.server.processes().into_iter().filter(|process| process.status("Name") == "sock");
    let peak = |text: String| text.trim_end_matches(" kB").parse().unwrap_or(0);
    processes.map(|process| peak(process.status("VmHWM"))).collect()
}

#[test]
fn ten_megabytes_are_cut_and_counted() {
    let bench = Bench::new(&["--timeout", "60"]);
    bench.good();
    let before = peaks(&bench).into_iter().max();
    for (how, printed, begin) in [("lines", 10 << 20, "xxxx"), ("line", (10 << 20) + 1, "yyyy")] {
        bench.check(how, &Value::Null, Then::Stays);
        let log = bench.log();
        let note = format!("[{} more bytes of output were dropped]\n", printed - KEPT);
        let (at, end) = (find(&log, begin.as_bytes()).unwrap(), find(&log, note.as_bytes()).unwrap());
        assert!((KEPT..KEPT + 2).contains(&(end - at)), "{how}: {}", end - at);
    }
    assert!(bench.log().len() < 3 * KEPT);
    // Neither was ever in memory as a whole.
    let grown = peaks(&bench).into_iter().max().zip(before).map(|(after, before)| after - before).unwrap();
    assert!(grown < 8 << 10, "{grown} kB more");
    assert!(bench.server.stop());
}

#[test]
fn bytes_that_are_no_text_are_kept() {
    let bench = Bench::new(&[]);
    let bytes: Vec<u8> = (0..=255).collect();
    let tailed = bench.server.invoke(FUNCTION, &[("x-amz-log-type", "Tail")], event("binary").as_bytes());
    assert_eq!(tailed.answer(), (Value::Null, false));
    // Base64 of some of them, wherever it begins.
    let tail = &tailed.headers["x-amz-log-result"];
    assert!(["ICEiIyQl", "ISIjJCUm", "IiMkJSYn"].iter().any(|text| tail.contains(text)), "{tail}");
    assert!(find(&bench.log(), &bytes).is_some());
    let shown = bench.server.sock(&["logs", FUNCTION]);
    assert!(shown.status.success() && find(&shown.stdout, &bytes).is_some());
    bench.check("binary", &json!(null), Then::Stays);
    assert!(bench.server.stop());
}
