//! Writes what the corpora began with: `cargo run -p sock-fuzz --example seeds`. One input of each kind that a target tells
//! apart; what fuzzing found besides has libFuzzer's names.

#![allow(clippy::unwrap_used, reason = "run by hand")]

use std::fs;
use std::path::Path;

use sock_fuzz::archive;
use sock_isolation::launcher::wire::{self, Files, Part, Request, StartZygote};
use sock_isolation::{Command, Limits, Profile, Role};
use sock_zygote::frames::{self, Kind};

type Seeds = Vec<(&'static str, Vec<u8>)>;

fn main() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let all: [(&str, Seeds); 7] = [
        ("bundle", archives(&BUNDLES)),
        ("frames", streams()),
        ("launcher", requests()),
        ("record", records()),
        ("requirements", REQUIREMENTS.map(|(name, text)| (name, text.into())).into()),
        ("signature", signatures()),
        ("wheel", archives(&WHEELS)),
    ];
    for (target, seeds) in all {
        let directory = corpus.join(target);
        fs::create_dir_all(&directory).unwrap();
        for (name, bytes) in seeds {
            fs::write(directory.join(format!("seed-{name}")), bytes).unwrap();
        }
    }
}

/// Flags, name, repetitions less one, content.
type Entry = (u8, &'static [u8], u8, &'static [u8]);
type Archive = (&'static str, &'static [Entry]);

const BUNDLES: [Archive; 8] = [
    ("plain", &[(0, b"main.py", 0, b"x = 1\n"), (4, b"bin/run", 0, b"#!"), (1, b"pkg/", 0, b"")]),
    ("deflated", &[(8, b"./main.py", 2, b"x = 1\n"), (128, b"requirements.txt", 0, b"a==1\n")]),
    ("traversal", &[(0, b"a/../../x", 0, b"1")]),
    // Nobody can make this file, should anything try.
    ("absolute", &[(0, b"/proc/x", 0, b"1")]),
    ("link", &[(2, b"link", 0, b"/etc/passwd")]),
    ("twice", &[(0, b"a/b", 0, b"1"), (0, b"./a/b", 0, b"2"), (0, b"a", 0, b"3")]),
    ("bomb", &[(8, b"zero", 63, &[0; 200]), (0, b"more", 63, &[0; 200])]),
    ("deep", &[(0, b"a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r", 0, b""), (96, b"wrong", 0, b"1")]),
];

const WHEELS: [Archive; 7] = [
    ("plain", &[(0, b"x/__init__.py", 0, b"y = 1\n"), (12, b"x/sub/_fast.so", 3, b"\x7fELF")]),
    (
        "schemes",
        &[
            (0, b"x-1.data/purelib/x.py", 0, b"1"),
            (4, b"x-1.data/scripts/x", 0, b"1"),
            (0, b"x-1.data/stdlib/os.py", 0, b""),
        ],
    ),
    ("traversal", &[(0, b"../x.py", 0, b"1")]),
    ("link", &[(2, b"x.py", 0, b"/etc/passwd")]),
    ("twice", &[(0, b"x.py", 0, b"1"), (0, b"x-1.data/platlib/x.py", 0, b"2")]),
    ("bomb", &[(8, b"zero", 63, &[0; 200])]),
    ("unlisted", &[(16, b"x.py", 0, b"1"), (64, b"y.py", 0, b"1"), (32, b"z.py", 0, b"1")]),
];

/// Each as its description, and as the zip file that it describes.
fn archives(archives: &[Archive]) -> Seeds {
    let mut seeds = Vec::new();
    for (name, entries) in archives {
        let mut bytes = Vec::new();
        for (flags, name, times, content) in *entries {
            bytes.extend([*flags, name.len() as u8]);
            bytes.extend(*name);
            bytes.extend([*times, content.len() as u8]);
            bytes.extend(*content);
        }
        let zip = archive::of(&bytes);
        seeds.push((*name, bytes));
        if zip.len() < 4096 {
            seeds.push((Box::leak(format!("{name}.zip").into_boxed_str()), zip));
        }
    }
    seeds
}

fn streams() -> Seeds {
    let frame = |kind, payload: &str| frames::encode(kind, payload.as_bytes()).unwrap();
    let info = r#"{"name":"f","version":"1","memory_mb":128,"log_group":"g","log_stream":"s"}"#;
    let failure = r#"{"errorMessage":"m","errorType":"E","requestId":"r","stackTrace":["l"]}"#;
    let facts = r#"{"imported":["a"],"missed":["b"],"lookups":["*"],"env":["V"],"native":true,"threads":["t"],"safe":true,"errors":{"c":"e"},"baseline":["sys"]}"#;
    let all = [
        frame(Kind::Init, &format!(r#"{{"handler":"m.f","env":{{"K":"V"}},"function":{info}}}"#)),
        frame(Kind::Invoke, "nonce of the now\u{2}\0\0\0{}[1]"),
        frame(Kind::Import, r#"{"imports":[{"module":"a.b","names":["c"]}]}"#),
        frame(Kind::Hello, ""),
        frame(Kind::Ready, r#"{"init_us":7}"#),
        frame(Kind::InitError, failure),
        frame(Kind::Result, "nonce of the nownull"),
        frame(Kind::Result, "nonce of the pasnull"),
        frame(Kind::Error, r#"nonce of the now{"errorMessage":"","errorType":""}"#),
        frame(Kind::Facts, facts),
    ];
    let stream = |cut: u8, bytes: &[u8]| [&[cut], bytes].concat();
    vec![
        ("all", stream(7, &all.concat())),
        ("unfinished", stream(1, b"r\x05\0\0\0abc")),
        ("too-long", stream(0, b"H\0\0\0\0r\0\0\x80\0")),
        ("unknown", stream(2, b"?\0\0\0\0")),
    ]
}

fn requests() -> Seeds {
    let limits = Limits { processes: 64, cpu_millis: 1000, ..Limits::default() };
    let files = || Files {
        task: Some("code/ab".into()),
        opt: Some("layers/l".into()),
        view: Some("view-1_a".into()),
    };
    let command = |role| Command {
        argv: vec!["/usr/bin/python3".into(), "-S".into()],
        env: vec![("LANG".into(), "C.UTF-8".into())],
        directory: "/var/task".into(),
        role,
        limits,
        memory_by_kernel: false,
    };
    let start = StartZygote { zygote: 3, files: files(), command: command(Role::Zygote), slots: 4 };
    let asked = |request| wire::encode_request(1, request).unwrap();
    vec![
        ("view", asked(Request::AddView { view: "v".into(), layers: vec!["wheels/a/site".into()] })),
        ("view-elsewhere", asked(Request::AddView { view: "../v".into(), layers: vec![] })),
        ("start", asked(Request::StartZygote(start))),
        ("stop", asked(Request::StopZygote { zygote: 3 })),
        ("spares", asked(Request::Keep { zygote: 3, spares: 1024, slots: 4 })),
        ("too-many-spares", asked(Request::Keep { zygote: 3, spares: 1025, slots: 4 })),
        ("fork", asked(Request::Fork { zygote: 3, files: files(), limits })),
        (
            "fork-of-nothing",
            asked(Request::Fork { zygote: 3, files: files(), limits: Limits { memory: 0, ..limits } }),
        ),
        (
            "execute",
            asked(Request::Execute {
                profile: Profile::Lean,
                files: files(),
                command: command(Role::Instance),
            }),
        ),
        (
            "other-role",
            asked(Request::Execute {
                profile: Profile::Lean,
                files: files(),
                command: command(Role::Zygote),
            }),
        ),
        ("check", asked(Request::Check { instance: 9 })),
        ("memory", asked(Request::Memory { of: Part::Instance(9) })),
        ("release", asked(Request::Release { instance: 1 })),
        ("destroy", asked(Request::Destroy { instance: u64::MAX })),
    ]
}

fn records() -> Seeds {
    let empty = "sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU";
    let long =
        "sha512=z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg_SpIdNs6c5H0NE8XYXysP-DGNKHfuwvY7kxvUdBeoGlODJ6-SfaPg";
    let middle = "sha384=OLBgp1GsljhM2TJ-sbHjaiH9txEUvgdDTAzHv2P24donTt6_529l-9Ua0vFImLlb";
    let of = |content: &[u8], text: String| [&[content.len() as u8], content, text.as_bytes()].concat();
    vec![
        ("plain", of(b"", format!("x/__init__.py,{empty},0\nx-1.dist-info/RECORD,,\n"))),
        ("quoted", of(b"", format!("\"a,b.py\",{empty}=,0\r\ndir/,,\r\n\"c\"\"d\",{empty},\r\n"))),
        ("long-hashes", of(b"", format!("a,{long},0\nb,{middle},0\nx-1.dist-info/RECORD.jws,,\n"))),
        ("content", of(b"x = 1\n", format!("a.py,{empty},6\n"))),
        ("twice", of(b"", format!("a,{empty},0\na,{empty},1\n"))),
        ("weak", of(b"", "a,md5=AAAA,1\nb,sha1,x\n".into())),
        ("elsewhere", of(b"", format!("../../bin/x,{empty},0\n"))),
        ("absolute", of(b"", format!("/etc/x,{empty},0\n"))),
    ]
}

const REQUIREMENTS: [(&str, &str); 7] = [
    ("plain", "# a comment\n\nJinja2\npandas >= 2, <4  # why\r\nrequests (>=2)\n"),
    ("extras", "uvicorn[standard, Foo_Bar]==0.30.*\nimportlib_metadata~=8.0 ; python_version < '3.10'\n"),
    ("continued", "\u{feff}long\\\n  ==1.0\nb ; os_name == 'a' \\\n and extra == \"b\"\n"),
    (
        "hashed",
        "a==1 \\\n --hash=sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb\nb===1\t--hash=x\n",
    ),
    ("option", "-r other.txt\n"),
    ("index", "a\n--index-url https://index.example/simple\n"),
    ("direct", "a @ https://index.example/a.whl\n./local\ngit+https://index.example/a\n"),
];

fn signatures() -> Seeds {
    let of = |place: u16, cut: u8, put: &str, request: &str| {
        let change = [&place.to_be_bytes()[..], &[cut, put.len() as u8], put.as_bytes()].concat();
        [&change, request.as_bytes()].concat()
    };
    let key = "SOCKEXAMPLEEXAMPLE12";
    let botocore = format!(
        "POST /2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Aecho/invocations?Qualifier=%24LATEST\n\
         host: 127.0.0.1:7625\nuser-agent: Boto3\nx-amz-client-context: a   b\nx-amz-date: 20260301T120000Z\n\
         x-amz-invocation-type: RequestResponse\nauthorization: AWS4-HMAC-SHA256 \
         Credential={key}/20260301/eu-west-1/lambda/aws4_request, \
         SignedHeaders=host;x-amz-client-context;x-amz-date;x-amz-invocation-type, \
         Signature=0ac8f01868b69a3af0f19646ad730e98aceef037eeb6afe7a7adb32b35ac9a85\n\n{{\"a\": 1}}"
    );
    let link = format!(
        "GET /2015-03-31/functions/echo?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={key}%2F20260301%2Feu-west-1%2Flambda%2Faws4_request\
         &X-Amz-Date=20260301T120000Z&X-Amz-Expires=600&X-Amz-SignedHeaders=host\
         &X-Amz-Signature=15a84b0f2475afd07b316d96240b62a4532b2d7c6862d4b79ab590471d7c21a7\nhost: 127.0.0.1:7625\n\n"
    );
    let dated = format!(
        "GET /\nhost: h\ndate: Sun, 01 Mar 2026 12:00:00 GMT\nauthorization: AWS4-HMAC-SHA256 \
         Credential={key}/20260301/us-east-1/lambda/aws4_request, SignedHeaders=date;host, Signature=00\n\n"
    );
    let query =
        "GET /2017-03-31/tags/a//b/../c%25?tagKeys=a%20b&tagKeys=c&z&y=%2B\nhost: h\nx-a: 1\nx-a: 2\n\n";
    vec![
        ("botocore", of(400, 1, "x", &botocore)),
        ("link", of(30, 0, "/x", &link)),
        ("dated", of(50, 1, "y", &dated)),
        ("query", of(5, 0, "./", query)),
        ("header", of(90, 0, " ", query)),
        (
            "body",
            of(
                u16::MAX,
                0,
                "2",
                "PUT /2015-03-31/functions/f/code\nx-amz-content-sha256: UNSIGNED-PAYLOAD\n\n[1]",
            ),
        ),
    ]
}
