//! House rules that a machine can check, so that nobody has to remember them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Longest source file.
const FILE_LINES_MAX: usize = 500;

/// All that may lie at the top level, dotfiles aside.
const TOP_LEVEL: [&str; 11] = [
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE",
    "Makefile",
    "README.md",
    "cache-node",
    "charts",
    "crds",
    "operator",
    "target",
    "tests",
];

/// Marks of unfinished work, each split so that this file does not contain it.
const UNFINISHED: [(&str, &str); 7] = [
    ("FIX", "ME"),
    ("XX", "X "),
    ("todo", "!("),
    ("unimplemented", "!("),
    ("dbg", "!("),
    ("#[igno", "re"),
    ("TO", "DO:"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

/// Every file git knows or would add, relative to the root.
fn files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root())
        .output()
        .expect("git is on the PATH");
    assert!(output.status.success(), "git ls-files failed");
    let names = String::from_utf8(output.stdout).expect("file names are UTF-8");
    names
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .filter(|path| root().join(path).is_file())
        .collect()
}

fn files_ending(endings: &[&str]) -> Vec<(PathBuf, String)> {
    files()
        .into_iter()
        .filter(|path| endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)))
        .map(|path| {
            let text = read(&path);
            (path, text)
        })
        .collect()
}

fn read(path: &Path) -> String {
    let bytes = fs::read(root().join(path)).expect("listed files can be read");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Fails with all offences at once.
fn assert_none(rule: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

#[test]
fn top_level_holds_only_the_fixed_rooms() {
    let strangers: Vec<String> = files()
        .iter()
        .filter_map(|path| path.components().next())
        .map(|first| first.as_os_str().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    assert_none("put it into one of the rooms", &strangers);
}

#[test]
fn no_source_file_is_longer_than_its_limit() {
    let long: Vec<String> = files_ending(&[".rs", ".go", ".sh", ".py"])
        .iter()
        .filter(|(_, text)| text.lines().count() > FILE_LINES_MAX)
        .map(|(path, text)| {
            format!("{} has {} lines, the limit is {FILE_LINES_MAX}", path.display(), text.lines().count())
        })
        .collect();
    assert_none("split these into two rooms", &long);
}

#[test]
fn no_unfinished_work_is_left_behind() {
    let mut offences = Vec::new();
    for (path, text) in files_ending(&[".rs", ".go", ".sh", ".py", ".toml", ".yaml", "Makefile"]) {
        for (number, line) in text.lines().enumerate() {
            for (head, tail) in UNFINISHED {
                if line.contains(&format!("{head}{tail}")) {
                    offences.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
                }
            }
        }
    }
    assert_none("finish or remove", &offences);
}

#[test]
fn recipes_of_the_makefile_have_one_line() {
    let makefile = read(Path::new("Makefile"));
    let lines: Vec<&str> = makefile.lines().collect();
    let offences: Vec<String> = lines
        .windows(2)
        .filter(|pair| {
            pair.iter().all(|line| line.starts_with('\t')) || (pair[0].starts_with('\t') && pair[0].ends_with('\\'))
        })
        .map(|pair| pair[1].to_owned())
        .collect();
    assert_none("put the steps into a script with its own help", &offences);
}

#[test]
fn every_make_target_explains_itself() {
    let makefile = read(Path::new("Makefile"));
    let silent: Vec<String> = makefile
        .lines()
        .filter(|line| {
            line.starts_with(|first: char| first.is_ascii_lowercase()) && line.contains(':') && !line.contains(":=")
        })
        .filter(|line| !line.starts_with("export") && !line.contains("## "))
        .map(str::to_owned)
        .collect();
    assert_none("end the line with `## what it does`", &silent);
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = read(Path::new("Cargo.toml"));
    let section = manifest.split("[workspace.dependencies]").nth(1).expect("the section exists");
    let section = section.split("\n[").next().unwrap_or_default();
    let silent: Vec<String> = section
        .lines()
        .filter(|line| line.contains(" = ") && !line.starts_with('#') && !line.contains("path = "))
        .filter(|line| !line.contains(" # "))
        .map(str::to_owned)
        .collect();
    assert_none("say in one line why it is needed", &silent);
}

#[test]
fn crates_take_their_dependencies_from_the_workspace() {
    let mut offences = Vec::new();
    for manifest in ["crds/Cargo.toml", "cache-node/Cargo.toml", "operator/Cargo.toml", "tests/Cargo.toml"] {
        let text = read(Path::new(manifest));
        let mut in_dependencies = false;
        for line in text.lines() {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies");
            } else if in_dependencies
                && line.contains('=')
                && !line.starts_with('#')
                && !line.contains("workspace = true")
            {
                offences.push(format!("{manifest}: {line}"));
            }
        }
    }
    assert_none("name the version once, in the workspace", &offences);
}

#[test]
fn modules_of_the_node_use_only_those_below_them() {
    // What exists only for tests stands outside the order.
    let lib = product_code(&read(Path::new("cache-node/src/lib.rs")));
    let order: Vec<String> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ").or_else(|| line.strip_prefix("mod ")))
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect();
    assert!(order.len() > 5, "lib.rs declares its modules in reading order");
    let place = |module: &str| order.iter().position(|name| name == module);
    let mut offences = Vec::new();
    for (path, text) in files_ending(&[".rs"]) {
        let Ok(inside) = path.strip_prefix("cache-node/src") else { continue };
        let first = inside.components().next().expect("a file has a name").as_os_str().to_string_lossy().into_owned();
        let own = first.trim_end_matches(".rs").to_owned();
        let Some(own_place) = place(&own) else { continue };
        for used in crate_modules_used(&product_code(&text)) {
            if place(&used).is_some_and(|used_place| used_place < own_place) {
                offences.push(format!("{} uses crate::{used}, which stands above it in lib.rs", path.display()));
            }
        }
    }
    assert_none("a file uses only what stands below it in lib.rs", &offences);
}

/// A source file without what only tests use: the module at its end, and single items before it. An item ends with the
/// first line of its own indentation that closes something, as rustfmt has it.
fn product_code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut kept = String::new();
    let mut left_out = None;
    for line in before_tests.lines() {
        let indent = line.len() - line.trim_start().len();
        match left_out {
            None if line.trim() == "#[cfg(test)]" => left_out = Some(indent),
            None => kept.extend([line, "\n"]),
            Some(of_item) if indent == of_item && line.ends_with(['}', ';', ',']) => left_out = None,
            Some(_) => {}
        }
    }
    kept
}

#[test]
fn what_only_tests_use_is_no_code_of_the_product() {
    let text = "#[cfg(test)]\nmod testing;\nimpl A {\n    #[cfg(test)]\n    fn b(\n\
                \x20       c: D,\n    ) {\n        e;\n    }\n    f;\n}\n#[cfg(test)]\nmod tests {\n    g;\n}\n";
    assert_eq!(product_code(text), "impl A {\n    f;\n}\n");
}

/// The first path segments after `crate::`, in plain and in braced imports.
fn crate_modules_used(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for piece in text.split("crate::").skip(1) {
        match piece.strip_prefix('{') {
            None => {
                found.insert(piece.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect());
            }
            Some(braced) => {
                let mut depth = 0_i32;
                let mut word = String::new();
                for character in braced.chars() {
                    match character {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        _ => {}
                    }
                    if depth == 0 && (character.is_ascii_alphanumeric() || character == '_') {
                        word.push(character);
                    } else if !word.is_empty() {
                        found.insert(std::mem::take(&mut word));
                    }
                }
                found.insert(word);
            }
        }
    }
    found
}

#[test]
fn the_node_builds_without_kubernetes_crates() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "-p", "cache-node", "-e", "normal", "--prefix", "none"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    let strangers: Vec<String> = tree
        .lines()
        .filter(|line| ["kube ", "k8s-openapi ", "schemars "].iter().any(|name| line.starts_with(name)))
        .map(str::to_owned)
        .collect();
    assert_none("crds without its feature `kube` is all that the node needs", &strangers);
}

#[test]
fn metrics_of_the_code_and_of_the_readme_are_the_same() {
    for room in ["cache-node", "operator"] {
        let documented = metric_names(&read(&PathBuf::from(room).join("README.md")), '`');
        let source = PathBuf::from(room).join("src");
        let mut in_code = BTreeSet::new();
        for (path, text) in files_ending(&[".rs"]) {
            if path.starts_with(&source) {
                in_code.extend(metric_names(&product_code(&text), '"'));
            }
        }
        let missing: Vec<String> = in_code.symmetric_difference(&documented).cloned().collect();
        assert_none(&format!("{room}: a metric is either not in the README or not in the code"), &missing);
    }
}

/// Words that begin with `tieredcache_`, directly after the given quote.
fn metric_names(text: &str, quote: char) -> BTreeSet<String> {
    text.split(&format!("{quote}tieredcache_"))
        .skip(1)
        .map(|rest| {
            let tail: String =
                rest.chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_').collect();
            format!("tieredcache_{tail}")
        })
        .filter(|name| !name.ends_with('_'))
        .collect()
}

/// Lines of code in a part of a component that need no reason.
const PART_LINES_MAX: usize = 199;

/// The components, each with its parts in the folder of its name.
const COMPONENTS: [&str; 5] = ["coordinator", "write_queue", "tag_index", "backplane", "layer"];

#[test]
fn components_of_the_node_are_as_small_as_its_readme_says() {
    let readme = read(Path::new("cache-node/README.md"));
    let section = readme.split("\n## Sizes\n").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap_or_default();
    let rows = section.lines().filter_map(|line| {
        let (file, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        Some((file, rest.split(' ').next()?.parse::<usize>().ok()?))
    });
    let rows: Vec<(&str, usize)> = rows.collect();
    assert!(rows.len() >= 7, "the table of sizes lacks rows: {rows:?}");
    let large = rows.iter().filter_map(|(file, most)| {
        let lines = lines_of_code(&read(&Path::new("cache-node/src").join(file)));
        (lines > *most).then(|| format!("{file} has {lines} lines of code, its README says {most} at most"))
    });
    let mut offences: Vec<String> = large.collect();
    for (path, text) in files_ending(&[".rs"]) {
        let Ok(inside) = path.strip_prefix("cache-node/src").map(|inside| inside.to_string_lossy().into_owned()) else {
            continue;
        };
        let is_part = COMPONENTS.contains(&inside.split(['/', '.']).next().unwrap_or_default());
        let is_test = inside.split('/').any(|name| name.trim_end_matches(".rs") == "tests");
        let lines = lines_of_code(&text);
        if is_part && !is_test && lines > PART_LINES_MAX && !rows.iter().any(|(file, _)| *file == inside) {
            offences.push(format!("{inside} has {lines} lines of code and no row in the README"));
        }
    }
    assert_none("split the component, or say in the README why it needs more", &offences);
}

/// Documentation and tests not counted.
fn lines_of_code(text: &str) -> usize {
    product_code(text).lines().filter(|line| !line.trim().is_empty() && !line.trim().starts_with("//")).count()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for (path, text) in files_ending(&[".md"]) {
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
                continue;
            }
            if !root().join(&folder).join(file).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert_none("these links are broken", &broken);
}

/// A word of so many parts between backticks is the name of a test.
const TEST_NAME_PARTS_MIN: usize = 4;

#[test]
fn tests_that_the_readme_names_exist() {
    let names: BTreeSet<String> = files_ending(&[".rs"]).iter().flat_map(|(_, text)| tests_in(text)).collect();
    let readme = read(Path::new("tests/README.md"));
    let named = readme.split('`').skip(1).step_by(2).filter(|name| word(name) == *name);
    let missing: Vec<String> = named
        .filter(|name| name.split('_').count() >= TEST_NAME_PARTS_MIN && !names.contains(*name))
        .map(str::to_owned)
        .collect();
    assert_none("tests/README.md names tests that are not there", &missing);
}

/// Names of the functions that are marked as tests, and of those in a list whose macro marks them.
fn tests_in(text: &str) -> Vec<String> {
    let lists = text.split(concat!("on_every_make", "! {")).skip(1);
    let listed = lists.flat_map(|rest| rest.split('}').next().unwrap_or_default().split_whitespace());
    let mut names: Vec<String> = listed.map(str::to_owned).collect();
    let mut is_marked = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") || line.starts_with("//") {
            is_marked |= line == "#[test]" || line.starts_with("#[tokio::test");
        } else if let (true, Some((_, rest))) = (std::mem::take(&mut is_marked), line.split_once("fn ")) {
            names.push(word(rest).to_owned());
        }
    }
    names
}

/// What the text begins with, as far as it is a name of a function.
fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

#[test]
fn figures_stand_below_the_command_that_made_them() {
    let page = read(Path::new("tests/bench/RESULTS.md"));
    let mut bare = Vec::new();
    // The goals are gathered from the sections below theirs.
    for section in page.split("\n## ").filter(|section| !section.starts_with("Where it stands\n")) {
        let mut has_command = false;
        for line in section.lines() {
            has_command |= line.starts_with("    ") || (line.starts_with('`') && line.ends_with('`'));
            let has_figures = line.starts_with('|') && line.contains(|c: char| c.is_ascii_digit());
            if has_figures && !has_command && !line.ends_with("` |") {
                bare.push(line.to_owned());
            }
        }
    }
    assert!(page.matches("\n|---").count() > 5, "there are tables");
    assert_none("write the command into a line of its own above the table", &bare);
}

#[test]
fn every_mutant_fits_the_code_and_names_what_must_notice_it() {
    let mut offences = Vec::new();
    for (path, text) in files_ending(&[".patch"]) {
        let fits = Command::new("git").args(["apply", "--check"]).arg(&path).current_dir(root()).output();
        let fits = fits.expect("git is on the PATH");
        if !fits.status.success() {
            offences.push(format!("{}: {}", path.display(), String::from_utf8_lossy(&fits.stderr).trim()));
        }
        for head in ["What: ", "Filter: "] {
            if !text.lines().any(|line| line.strip_prefix(head).is_some_and(|rest| !rest.is_empty())) {
                offences.push(format!("{} lacks its line `{head}`", path.display()));
            }
        }
    }
    assert_none("make the same bug in the code as it is now", &offences);
}

#[test]
fn every_room_has_a_readme() {
    let missing: Vec<String> = ["", "cache-node", "charts/tieredcache-operator", "crds", "operator", "tests"]
        .iter()
        .map(|room| PathBuf::from(room).join("README.md"))
        .filter(|path| !root().join(path).is_file())
        .map(|path| path.display().to_string())
        .collect();
    assert_none("a newcomer starts there", &missing);
}

#[test]
fn nothing_names_a_machine_of_its_makers() {
    let marks = [["/wo", "rk/"].concat(), ["/fa", "rm/"].concat(), ["/ro", "ot/"].concat()];
    let mut offences = Vec::new();
    for path in files() {
        let text = read(&path);
        for mark in &marks {
            if text.contains(mark.as_str()) {
                offences.push(format!("{} contains {mark}", path.display()));
            }
        }
    }
    assert_none("speak of the product alone", &offences);
}
