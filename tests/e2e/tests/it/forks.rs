//! Libraries out of a zygote: imported in the parent, used in two children at once.
//!
//! What is imported ahead must not differ from what a function imports by itself: the answers are right, siblings draw other
//! random numbers, and nobody waits for a thread that stayed behind.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::deploys::index::{Index, Listed};
use crate::deploys::server;
use crate::deploys::wheel::Wheel;
use crate::grove::{self, packages};
use crate::server::{Answer, Server};

struct Library {
    name: &'static str,
    /// Lines of its requirements.txt.
    requirements: &'static [&'static str],
    imports: &'static str,
    /// An expression of it, and its value.
    using: &'static str,
    answer: &'static str,
    /// An expression that is never the same twice, of those that draw.
    drawing: &'static str,
}

/// Long enough for whatever compiles its code first, and far less than for ever.
const PATIENCE: Duration = Duration::from_secs(10);

#[rustfmt::skip]
const LIBRARIES: &[Library] = &[
    Library { name: "aiohttp", requirements: &["aiohttp==3.14.5"], imports: "import aiohttp.web", using: "aiohttp.web.Response(text='x').text", answer: "\"x\"", drawing: "0" },
    Library { name: "arrow", requirements: &["pyarrow==26.0.1"], imports: "import pyarrow, pyarrow.compute", using: "pyarrow.compute.sum(pyarrow.array([1, 2, 3])).as_py()", answer: "6", drawing: "0" },
    Library { name: "beautifulsoup", requirements: &["beautifulsoup4==4.15.0"], imports: "import bs4", using: "bs4.BeautifulSoup('<p>x</p>', 'html.parser').p.text", answer: "\"x\"", drawing: "0" },
    Library { name: "boto3", requirements: &["boto3==1.44.8"], imports: "import boto3", using: "boto3.client('s3', region_name='eu-west-1', aws_access_key_id='x', aws_secret_access_key='y').meta.region_name", answer: "\"eu-west-1\"", drawing: "0" },
    Library { name: "cryptography", requirements: &["cryptography==50.0.2"], imports: "from cryptography.fernet import Fernet\nkey = Fernet.generate_key()", using: "Fernet(key).decrypt(Fernet(key).encrypt(b'x')).decode()", answer: "\"x\"", drawing: "Fernet.generate_key().decode()" },
    Library { name: "fastapi", requirements: &["fastapi==0.165.0", "mangum==0.22.0"], imports: "import fastapi, mangum\napp = fastapi.FastAPI(title='x')", using: "app.openapi()['info']['title']", answer: "\"x\"", drawing: "0" },
    Library { name: "faker", requirements: &["faker==40.63.0"], imports: "import faker", using: "len(faker.Faker().pystr(7, 7))", answer: "7", drawing: "faker.Faker().pystr()" },
    Library { name: "grpc", requirements: &["grpcio==1.85.3"], imports: "import grpc", using: "grpc.insecure_channel('127.0.0.1:1').close()", answer: "null", drawing: "0" },
    Library { name: "httpx", requirements: &["httpx==0.28.1"], imports: "import httpx", using: "httpx.Request('GET', 'http://x/y').url.path", answer: "\"/y\"", drawing: "0" },
    Library { name: "jinja2", requirements: &["jinja2==3.1.6"], imports: "import jinja2", using: "jinja2.Template('{{ a }}').render(a=1)", answer: "\"1\"", drawing: "0" },
    Library { name: "lxml", requirements: &["lxml==6.1.3"], imports: "from lxml import etree", using: "etree.fromstring('<a><b/></a>')[0].tag", answer: "\"b\"", drawing: "0" },
    Library { name: "matplotlib", requirements: &["matplotlib==3.11.2"], imports: "import io\nimport matplotlib\nmatplotlib.use('Agg')\nimport matplotlib.pyplot\ndef draw():\n    file = io.BytesIO()\n    matplotlib.pyplot.figure(figsize=(1, 1)).savefig(file, format='png')\n    return file.getvalue()[1:4].decode()", using: "draw()", answer: "\"PNG\"", drawing: "0" },
    Library { name: "msgpack", requirements: &["msgpack==1.2.4"], imports: "import msgpack", using: "msgpack.unpackb(msgpack.packb([1]))", answer: "[1]", drawing: "0" },
    Library { name: "networkx", requirements: &["networkx==3.6.1"], imports: "import networkx", using: "networkx.shortest_path_length(networkx.path_graph(4), 0, 3)", answer: "3", drawing: "sorted(networkx.gnp_random_graph(30, 0.5).edges())" },
    Library { name: "nltk", requirements: &["nltk==3.10.4"], imports: "import nltk.tokenize", using: "nltk.tokenize.wordpunct_tokenize('a b.')", answer: "[\"a\", \"b\", \".\"]", drawing: "0" },
    Library { name: "numba", requirements: &["numba==0.68.1"], imports: "import numba\ndef twice(x): return 2 * x", using: "int(numba.njit(twice)(3))", answer: "6", drawing: "0" },
    Library { name: "numpy", requirements: &["numpy==2.4.6"], imports: "import numpy", using: "int(numpy.dot(numpy.ones((300, 300)), numpy.ones((300, 300))).sum())", answer: "27000000", drawing: "numpy.random.random()" },
    Library { name: "opencv", requirements: &["opencv-python-headless==5.0.0.93"], imports: "import cv2, numpy", using: "int(cv2.GaussianBlur(numpy.full((64, 64), 7, numpy.uint8), (5, 5), 0)[3, 3])", answer: "7", drawing: "int(cv2.randu(numpy.zeros((1, 1), numpy.int32), 0, 1 << 30)[0, 0]) + numpy.random.random()" },
    Library { name: "orjson", requirements: &["orjson==3.13.0"], imports: "import orjson", using: "orjson.dumps({'a': 1}).decode()", answer: "\"{\\\"a\\\":1}\"", drawing: "0" },
    Library { name: "pandas", requirements: &["pandas==3.1.1"], imports: "import pandas", using: "int(pandas.DataFrame({'a': [1, 1, 2], 'b': [1, 2, 3]}).groupby('a').b.sum()[1])", answer: "3", drawing: "pandas.Series(range(100000)).sample(3).tolist()" },
    Library { name: "pillow", requirements: &["pillow==13.0.0"], imports: "from PIL import Image", using: "list(Image.new('RGB', (8, 8), (1, 2, 3)).resize((4, 4)).getpixel((1, 1)))", answer: "[1, 2, 3]", drawing: "0" },
    Library { name: "polars", requirements: &["polars==2.1.0"], imports: "import polars", using: "polars.DataFrame({'a': [1, 1, 2], 'b': [1, 2, 3]}).lazy().group_by('a').agg(polars.col('b').sum()).sort('a').collect()['b'].to_list()", answer: "[3, 3]", drawing: "polars.Series(range(100000)).sample(3).to_list()" },
    Library { name: "protobuf", requirements: &["protobuf==7.36.2"], imports: "from google.protobuf import struct_pb2", using: "struct_pb2.Value(number_value=2).number_value", answer: "2.0", drawing: "0" },
    Library { name: "psycopg", requirements: &["psycopg2-binary==2.9.13"], imports: "import psycopg2.extensions", using: "psycopg2.extensions.adapt(3).getquoted().decode()", answer: "\"3\"", drawing: "0" },
    Library { name: "pydantic", requirements: &["pydantic==2.14.4"], imports: "import pydantic\nclass Model(pydantic.BaseModel):\n    a: int", using: "Model(a='3').a", answer: "3", drawing: "0" },
    Library { name: "pymongo", requirements: &["pymongo==4.20.1"], imports: "import bson", using: "bson.decode(bson.encode({'a': 1}))", answer: "{\"a\": 1}", drawing: "str(bson.ObjectId())" },
    Library { name: "redis", requirements: &["redis==8.1.0"], imports: "import redis", using: "redis.Redis(port=1).connection_pool.connection_kwargs['port']", answer: "1", drawing: "0" },
    Library { name: "requests", requirements: &["requests==2.34.2"], imports: "import requests", using: "requests.Request('GET', 'http://x/', params={'a': 1}).prepare().url", answer: "\"http://x/?a=1\"", drawing: "0" },
    Library { name: "scipy", requirements: &["scipy==1.17.1"], imports: "import scipy.integrate, scipy.stats", using: "round(scipy.integrate.quad(lambda x: x * x, 0, 3)[0])", answer: "9", drawing: "scipy.stats.norm.rvs()" },
    Library { name: "sklearn", requirements: &["scikit-learn==1.9.1"], imports: "import numpy, sklearn.cluster, sklearn.utils", using: "len(set(sklearn.cluster.KMeans(2, n_init=1).fit(numpy.array([[0], [1], [9], [10]])).labels_[[0, 1]]))", answer: "1", drawing: "sklearn.utils.shuffle(list(range(1000)))[:5]" },
    Library { name: "sqlalchemy", requirements: &["sqlalchemy==2.1.9"], imports: "import sqlalchemy", using: "sqlalchemy.create_engine('sqlite://').connect().execute(sqlalchemy.text('select 6')).scalar()", answer: "6", drawing: "0" },
    Library { name: "sympy", requirements: &["sympy==1.14.0"], imports: "import sympy", using: "str(sympy.integrate(sympy.Symbol('x')))", answer: "\"x**2/2\"", drawing: "0" },
    Library { name: "uvloop", requirements: &["uvloop==0.23.0"], imports: "import asyncio, uvloop", using: "uvloop.run(asyncio.sleep(0, 'slept'))", answer: "\"slept\"", drawing: "0" },
    Library { name: "yaml", requirements: &["pyyaml==6.0.4"], imports: "import yaml", using: "yaml.safe_load('a: [1]')", answer: "{\"a\": [1]}", drawing: "0" },
];

/// Those that nothing is forked from: functions import them by themselves, out of a zygote without packages.
const NOT_AHEAD: [(&str, &str); 3] = [
    ("networkx", "it lists the environment when it is imported, which is no other function's"),
    ("numba", "as networkx does"),
    ("polars", "it leaves a thread behind"),
];

impl Library {
    /// Instances that were forked from a zygote which has it.
    fn forks(&self, server: &Server) -> u64 {
        let named = |line: &&str| line.split("==").next().unwrap_or_default().to_lowercase();
        let name = self.requirements.first().map(named).unwrap();
        let nodes = grove::nodes(server);
        let with_it = nodes.iter().filter(|node| packages(node).contains(&name));
        with_it.map(|node| node["forks"].as_u64().unwrap()).sum()
    }

    fn source(&self) -> String {
        let Self { imports, using, drawing, .. } = self;
        format!(
            "import os, random, time, uuid\n{imports}\n\n\ndef handler(event, context):\n    \
             # Until the other one has begun too.\n    \
             open('/tmp/working', 'w').close()\n    \
             while os.path.exists('/tmp/working'): time.sleep(0.01)\n    \
             drawn = [{drawing}, random.random(), str(uuid.uuid4())]\n    \
             return {{'answer': {using}, 'drawn': drawn, 'pid': os.readlink('/proc/self/ns/pid')}}\n"
        )
    }

    /// Two new instances at once; what they answered, and how long both took once they were let go.
    fn two(&self, server: &Server) -> (Vec<Answer>, Duration) {
        let event = json!({});
        std::thread::scope(|scope| {
            let calls: Vec<_> = (0..2).map(|_| scope.spawn(|| server.run(self.name, &event))).collect();
            let files = |name: &str| {
                let files = server.processes().into_iter().map(|process| process.inside(name));
                files.filter(|file| file.exists()).collect::<Vec<_>>()
            };
            // Its init sees the same /tmp as the handler.
            let working = server.wait_until(|| files("/tmp/working"), |files| files.len() == 4);
            let begun = Instant::now();
            working.iter().for_each(|file| drop(std::fs::remove_file(file)));
            let answers = calls.into_iter().map(|call| call.join().unwrap()).collect();
            (answers, begun.elapsed())
        })
    }
}

#[test]
fn libraries_work_in_two_siblings_at_once() {
    let (data, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path());
    let mut wrong = Vec::new();
    for library in LIBRARIES {
        let directory = work.path().join(library.name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("app.py"), library.source()).unwrap();
        std::fs::write(directory.join("requirements.txt"), library.requirements.join("\n")).unwrap();
        server.deploy(
            &directory,
            library.name,
            &["--handler", "app.handler", "--timeout", "60", "--memory", "3008"],
        );
        let before = library.forks(&server);
        let (answers, took) = library.two(&server);
        let ahead = library.forks(&server) == before + 2;
        let wanted = NOT_AHEAD.iter().all(|(name, _)| *name != library.name);
        let expected: Value = serde_json::from_str(library.answer).unwrap();
        let forked = answers.iter().all(|answer| ["zygote", "spare"].contains(&answer.start.as_str()));
        let right = answers.iter().all(|answer| answer.status == 200 && answer.body["answer"] == expected);
        let [first, second] = [0, 1].map(|at: usize| &answers[at].body);
        let drawn = |at: usize| first["drawn"][at] != second["drawn"][at];
        let differ =
            first["pid"] != second["pid"] && drawn(1) && drawn(2) && (drawn(0) || library.drawing == "0");
        println!("{}: {took:?}", library.name);
        if !(forked && right && differ && took < PATIENCE && ahead == wanted) {
            wrong.push((library.name, (forked, ahead), right, differ, took, answers));
        }
        server.succeed(&["delete", library.name]);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(LIBRARIES.len() - NOT_AHEAD.len() >= 30);
    assert!(server.stop());
}

/// Deploys a function that imports `package` of the index, and returns what `package.answer()` says.
fn deploy(server: &Server, work: &std::path::Path, package: &str) {
    let directory = work.join(package);
    std::fs::create_dir(&directory).unwrap();
    let source = format!("import {package}\ndef handler(event, context):\n    return {package}.answer()\n");
    std::fs::write(directory.join("app.py"), source).unwrap();
    std::fs::write(directory.join("requirements.txt"), package).unwrap();
    server.deploy(&directory, package, &["--handler", "app.handler", "--timeout", "60"]);
}

#[test]
fn what_an_import_leaves_behind() {
    let (data, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let index = Index::start();
    for (name, code) in [
        // As libraries notice that they were forked.
        ("numbered", "import os\nnumber = os.getpid()\ndef answer(): return number != os.getpid()\n"),
        // A child has not the thread, and would wait for it for ever.
        (
            "threaded",
            "import queue, threading\nasked, answered = queue.Queue(), queue.Queue()\n\
             def work():\n    while True: answered.put(asked.get())\n\
             threading.Thread(target=work, daemon=True).start()\n\
             def answer():\n    asked.put(True)\n    return answered.get(timeout=10)\n",
        ),
    ] {
        let wheel = Wheel::new(name, "1.0").file(&format!("{name}.py"), code);
        index.put(name, &[Listed::new(&wheel)]);
    }
    let server = server(data.path(), &index.url());
    for (name, starts) in [("numbered", &["zygote", "spare"][..]), ("threaded", &["cold", "zygote", "spare"])]
    {
        deploy(&server, work.path(), name);
        let answer = server.run(name, &json!({}));
        assert_eq!((answer.status, &answer.body), (200, &json!(true)), "{name}: {answer:?}");
        assert!(starts.contains(&answer.start.as_str()), "{name}: {answer:?}");
    }
    assert!(server.stop());
}
