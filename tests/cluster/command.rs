//! Running programs and reading what they say.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::error::{AtPath, ClusterError, Result};

/// Words before a command that must not outlive this process: one that went on after its caller was killed would make
/// things that the next `down` has already looked for.
const MORTAL: [&str; 4] = ["setpriv", "--pdeathsig", "KILL", "--"];
/// How much of a failed program's output an error repeats.
const OUTPUT_SHOWN_BYTES: usize = 2_000;

/// A command that ends with this process, or rather with the thread that starts it: wait for it there.
pub(crate) fn mortal(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(MORTAL[0]);
    command.args(&MORTAL[1..]).arg(program.as_ref());
    command
}

/// Runs a program, which ends with this process, and returns its standard output.
///
/// # Errors
/// `Io` when it does not start, `Command` when it ends badly.
pub(crate) fn run<A: AsRef<OsStr>>(program: impl AsRef<Path>, args: &[A]) -> Result<String> {
    output_of(mortal(program).args(args))
}

/// Runs a program with `input` on its standard input and returns its standard output.
///
/// # Errors
/// As [`run`].
pub(crate) fn feed<A: AsRef<OsStr>>(program: impl AsRef<Path>, args: &[A], input: &str) -> Result<String> {
    feed_to(mortal(program).args(args), input)
}

/// Runs a prepared command with `input` on its standard input and returns its standard output.
///
/// # Errors
/// As [`run`].
pub(crate) fn feed_to(command: &mut Command, input: &str) -> Result<String> {
    let program = Path::new(command.get_program()).to_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().at("starting", &program)?;
    let mut stdin = child.stdin.take().expect("stdin was asked for as a pipe");
    // A program may end without reading all of it; its exit status then says why.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().at("waiting for", &program)?;
    checked(command, output)
}

/// Runs a prepared command and returns its standard output.
///
/// # Errors
/// As [`run`].
pub(crate) fn output_of(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().at("starting", Path::new(command.get_program()))?;
    checked(command, output)
}

/// Whether a program can be found on the path.
pub(crate) fn exists(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

fn checked(command: &Command, output: Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let said = format!("{}{}", stdout, String::from_utf8_lossy(&output.stderr));
    Err(ClusterError::Command {
        command: command_line(command),
        status: output.status.to_string(),
        output: tail(said.trim(), OUTPUT_SHOWN_BYTES).to_owned(),
    })
}

fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.strip_prefix(MORTAL.map(Into::into).as_slice()).unwrap_or(&words).join(" ")
}

/// The last `bytes_max` bytes of a text, at a character boundary.
fn tail(text: &str, bytes_max: usize) -> &str {
    let from = text.ceil_char_boundary(text.len().saturating_sub(bytes_max));
    &text[from..]
}

#[cfg(test)]
mod tests {
    use super::{feed, run, tail};

    #[test]
    fn output_of_a_good_program_is_returned() {
        assert_eq!(run("echo", &["hello"]).unwrap(), "hello\n");
    }

    #[test]
    fn input_reaches_the_program() {
        assert_eq!(feed("cat", &["-"], "in and out").unwrap(), "in and out");
    }

    #[test]
    fn a_failed_program_is_named_with_what_it_said() {
        let error = run("sh", &["-c", "echo why >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.starts_with("sh -c") && error.contains("why") && error.contains('3'), "{error}");
    }

    #[test]
    fn tail_keeps_whole_characters() {
        assert_eq!(tail("aé", 1), "");
        assert_eq!(tail("aé", 2), "é");
        assert_eq!(tail("ab", 9), "ab");
    }
}
