//! What a handler's sources import when they are imported: the list that a zygote imports ahead. Static and pure.
//!
//! Followed are module-level imports, from the handler's module through the function's own modules. Left out are bodies of
//! functions and lambdas, which run later or never, and blocks under `if TYPE_CHECKING`. Imports inside `try` count: one
//! that fails in the zygote fails in the function too, or the sharing rule keeps them apart.
//!
//! A hint, never a promise: what it misses is imported by the function itself, what it has too many only costs memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use tree_sitter::{Node, Parser};

/// One import: a module, and names taken from it, each of which may be a submodule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Import {
    /// Dotted.
    pub module: String,
    /// For `from module import names`.
    pub names: Vec<String>,
}

/// A function's own Python files: dotted module name (of a package: the package's) → source.
pub type Sources = BTreeMap<String, Source>;

/// One module's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its text.
    pub text: String,
    /// Whether it is a package's `__init__`.
    pub package: bool,
}

/// What importing `handler` (`package.module.function` or `directory/module.function`) imports from elsewhere, in order
/// of first mention.
pub fn scan(sources: &Sources, handler: &str) -> Vec<Import> {
    let Some((module, _)) = handler.rsplit_once('.') else { return Vec::new() };
    let (mut seen, mut queue) = (BTreeSet::new(), VecDeque::new());
    let (mut found, mut order) = (BTreeMap::<String, BTreeSet<String>>::new(), Vec::new());
    follow(sources, &module.replace('/', "."), &mut seen, &mut queue);
    while let Some(module) = queue.pop_front() {
        let Some(source) = sources.get(&module) else { continue };
        for import in imports(&source.text) {
            let Some(name) = absolute(&import, &module, source.package) else { continue };
            let top = name.split('.').next().unwrap_or_default();
            if is_own(sources, top) {
                follow(sources, &name, &mut seen, &mut queue);
                for taken in &import.names {
                    follow(sources, &format!("{name}.{taken}"), &mut seen, &mut queue);
                }
            } else if top != "__future__" {
                let names = found.entry(name.clone()).or_insert_with(|| {
                    order.push(name.clone());
                    BTreeSet::new()
                });
                names.extend(import.names);
            }
        }
    }
    order
        .into_iter()
        .map(|module| {
            let names = found.remove(&module).unwrap_or_default().into_iter().collect();
            Import { module, names }
        })
        .collect()
}

fn is_own(sources: &Sources, top: &str) -> bool {
    let prefix = format!("{top}.");
    sources.contains_key(top)
        || sources.range(prefix.clone()..).next().is_some_and(|(name, _)| name.starts_with(&prefix))
}

/// Importing `a.b.c` runs `a` and `a.b` as well.
fn follow(sources: &Sources, module: &str, seen: &mut BTreeSet<String>, queue: &mut VecDeque<String>) {
    let ends = module.match_indices('.').map(|(at, _)| at).chain([module.len()]);
    for end in ends {
        let name = &module[..end];
        if sources.contains_key(name) && seen.insert(name.to_owned()) {
            queue.push_back(name.to_owned());
        }
    }
}

/// An import as it stands in the source: leading dots are counted.
struct Written {
    dots: usize,
    module: String,
    names: Vec<String>,
}

/// The absolute name of what is imported in `module`; `None` when the dots lead out of the function's files.
fn absolute(import: &Written, module: &str, package: bool) -> Option<String> {
    if import.dots == 0 {
        return Some(import.module.clone());
    }
    let mut parts: Vec<&str> = module.split('.').collect();
    let up = import.dots - usize::from(package);
    parts.truncate(parts.len().checked_sub(up)?);
    parts.extend(import.module.split('.').filter(|part| !part.is_empty()));
    (!parts.is_empty()).then(|| parts.join("."))
}

fn imports(text: &str) -> Vec<Written> {
    let mut parser = Parser::new();
    if parser.set_language(&tree_sitter_python::LANGUAGE.into()).is_err() {
        return Vec::new();
    }
    let Some(tree) = parser.parse(text, None) else { return Vec::new() };
    let mut found = Vec::new();
    walk(tree.root_node(), text, &mut found);
    found
}

/// In the order of the text. With a stack of its own: what is nested deeply must not use up the caller's.
fn walk(root: Node<'_>, text: &str, found: &mut Vec<Written>) {
    let mut pending = vec![root];
    while let Some(node) = pending.pop() {
        let mut cursor = node.walk();
        let inner: Vec<Node<'_>> = match node.kind() {
            "function_definition" | "lambda" => Vec::new(),
            // Its `else` runs.
            "if_statement" if is_type_checking(node, text) => {
                node.children_by_field_name("alternative", &mut cursor).collect()
            }
            "import_statement" => {
                for name in node.children_by_field_name("name", &mut cursor) {
                    found.push(Written { dots: 0, module: plain(name, text), names: Vec::new() });
                }
                Vec::new()
            }
            "import_from_statement" => {
                found.extend(import_from(node, text));
                Vec::new()
            }
            _ => node.named_children(&mut cursor).collect(),
        };
        pending.extend(inner.into_iter().rev());
    }
}

fn import_from(node: Node<'_>, text: &str) -> Option<Written> {
    let written = plain(node.child_by_field_name("module_name")?, text);
    let module = written.trim_start_matches('.').trim().to_owned();
    let dots = written.chars().take_while(|c| *c == '.').count();
    let mut cursor = node.walk();
    let names = node.children_by_field_name("name", &mut cursor).map(|name| plain(name, text)).collect();
    Some(Written { dots, module, names })
}

/// A name without its alias.
fn plain(node: Node<'_>, text: &str) -> String {
    let node =
        if node.kind() == "aliased_import" { node.child_by_field_name("name").unwrap_or(node) } else { node };
    node.utf8_text(text.as_bytes()).unwrap_or_default().split_whitespace().collect()
}

fn is_type_checking(node: Node<'_>, text: &str) -> bool {
    let condition = node.child_by_field_name("condition").map(|condition| plain(condition, text));
    matches!(condition.as_deref(), Some("TYPE_CHECKING" | "typing.TYPE_CHECKING"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files as `path: text`, separated by lines of `---`.
    fn check(files: &str, handler: &str, expected: &[&str]) {
        let sources: Sources = files
            .split("---\n")
            .map(|file| {
                let (path, text) = file.trim_start().split_once(":\n").unwrap();
                let module = path.trim_end_matches(".py").replace('/', ".");
                let package = module.ends_with(".__init__");
                let module = module.trim_end_matches(".__init__").to_owned();
                (module, Source { text: text.to_owned(), package })
            })
            .collect();
        let found: Vec<String> = scan(&sources, handler)
            .into_iter()
            .map(|import| {
                if import.names.is_empty() {
                    import.module
                } else {
                    format!("{}: {}", import.module, import.names.join(", "))
                }
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn module_level_imports_in_order() {
        check(
            "main.py:\nimport os, numpy as np\nfrom pandas.io import json as j, sql\nimport os.path\n",
            "main.handler",
            &["os", "numpy", "pandas.io: json, sql", "os.path"],
        );
    }

    #[test]
    fn bodies_of_functions_wait_classes_do_not() {
        check(
            "m.py:\ndef f():\n    import late\nclass C:\n    import early\n    def g(self):\n        import later\n\
             f = lambda: __import__('x')\n",
            "m.h",
            &["early"],
        );
    }

    #[test]
    fn try_and_if_count_type_checking_does_not() {
        check(
            "m.py:\nfrom __future__ import annotations\ntry:\n    import orjson\nexcept ImportError:\n    import json\n\
             if TYPE_CHECKING:\n    import mypy\nelse:\n    import real\nif x:\n    import y\n",
            "m.h",
            &["orjson", "json", "real", "y"],
        );
    }

    #[test]
    fn own_modules_are_followed() {
        check(
            "app/main.py:\nfrom . import util\nfrom .sub import thing\nimport requests\n---\napp/util.py:\nimport jinja2\n---\n\
             app/__init__.py:\nimport yaml\n---\napp/sub/__init__.py:\nfrom ..other import a\nfrom .deep import *\n---\n\
             app/other.py:\nimport attrs\n---\napp/unused.py:\nimport unused_dep\n---\napp/sub/deep.py:\nimport six\n",
            "app/main.handler",
            &["yaml", "requests", "jinja2", "attrs", "six"],
        );
    }

    #[test]
    fn broken_sources_give_what_can_be_read() {
        check("m.py:\nimport good\ndef broken(:\n", "m.h", &["good"]);
        check("m.py:\nfrom ... import beyond\n", "m.h", &[]);
    }

    #[test]
    fn deep_nesting_does_not_use_up_the_stack() {
        let sum = format!("x = 1{}", " + 1".repeat(200_000));
        let nested = format!("y = {}{}", "(".repeat(100_000), ")".repeat(100_000));
        let blocks: String = (0..90).map(|depth| format!("{}if x:\n", " ".repeat(depth))).collect();
        let text = format!("{sum}\n{nested}\n{blocks}{}import pandas\n", " ".repeat(90));
        check(&format!("app.py:\n{text}"), "app.handler", &["pandas"]);
    }
}
