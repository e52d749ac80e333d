//! The generated `/etc`: what programs need to look up, and nothing of the host's.

/// File names in `/etc` and their contents.
pub(crate) fn files() -> [(&'static str, &'static str); 6] {
    [
        // Root is what a zygote is inside: its imports must find the same home as the function's.
        (
            "passwd",
            "root:x:0:0:root:/tmp:/usr/sbin/nologin\n\
             sock:x:1000:1000:sock:/tmp:/bin/sh\n\
             nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        ),
        ("group", "root:x:0:\nsock:x:1000:\nnogroup:x:65534:\n"),
        ("hosts", "127.0.0.1 localhost sock\n::1 localhost sock\n"),
        ("hostname", "sock\n"),
        (
            "nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
        ),
        // There is no name server: a container has its loopback interface only.
        ("resolv.conf", ""),
    ]
}
