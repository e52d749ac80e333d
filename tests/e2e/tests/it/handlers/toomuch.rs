//! Handlers that take as much as they get.

use serde_json::json;

use super::{Bench, Then, raised};

#[test]
fn what_there_is_too_little_of_is_an_exception() {
    // More than /tmp has, since its files count as the function's memory where the kernel counts it.
    let bench = Bench::new(&["--timeout", "60", "--memory", "1024"]);
    let threads = raised(
        "RuntimeError",
        "can't start new thread",
        &[("threads", "_thread.start_new_thread(hang, ())")],
    );
    bench.check("threads", &threads, Then::Stays);
    let full = [("fills", "fill(file, 1)"), ("fill", "file.write(block)")];
    bench.check("fills", &raised("OSError", "[Errno 28] No space left on device", &full), Then::Stays);
    assert!(bench.server.stop());
}

#[test]
fn no_descriptor_is_left_to_report_it_with() {
    let bench = Bench::new(&["--timeout", "60", "--fresh"]);
    let open = [("files", "held.append(os.open(\"/dev/null\", os.O_RDONLY))")];
    let mut expected = raised("OSError", "[Errno 24] Too many open files: '/dev/null'", &open);
    // Without the sources, which cannot be read.
    for frame in expected["stackTrace"].as_array_mut().unwrap() {
        let line = frame.as_str().unwrap().lines().next().unwrap();
        *frame = json!(format!("{line}\n"));
    }
    bench.check("files", &expected, Then::Stays);
    assert!(bench.server.stop());
}

#[test]
fn too_much_memory() {
    let bench = Bench::new(&["--timeout", "60", "--memory", "128"]);
    let message = "RequestId: ID Error: Runtime exited with error: signal: killed";
    let killed = json!({"errorType": "Runtime.OutOfMemory", "errorMessage": message});
    // Where no controller limits it, the kernel refuses what it would kill for there.
    let refused = raised("MemoryError", "", &[("memory", "block = bytearray(1 << 30)")]);
    let machine = cfg!(feature = "machine");
    let (expected, then) = if machine { (killed, Then::Ends) } else { (refused, Then::Stays) };
    bench.check("memory", &expected, then);
    assert!(bench.server.stop());
}
