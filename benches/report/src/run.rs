//! Runs the groups, one after the other, and shows how far they are.
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::groups::{Extent, Group, Kind};
use crate::machine::{self, Machine};
use crate::results::{self, Origin};

/// Runs the groups, and keeps their values in the folder. With `resume`, values of the same extent, commit and machine are
/// taken as they are, and only what is missing is run.
///
/// # Errors
/// When a group cannot run, or some of its processes failed; the others are run all the same.
pub fn run(groups: &[&Group], extent: &Extent, folder: &Path, resume: bool, command: &str) -> Result<(), String> {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let (machine, commit) = (Machine::here(), machine::commit());
    let mut todo = Vec::new();
    for &group in groups {
        let old = results::read_origin(folder, group)?.filter(|_| resume);
        match &old {
            Some(old) if !old.fits(extent, &commit, &machine) => {
                eprintln!(
                    "{}: the results are of another run (commit, machine or options); it begins anew",
                    group.name
                );
                todo.push((group, false));
            }
            Some(old) if old.is_complete() => eprintln!("{}: complete", group.name),
            Some(_) => todo.push((group, true)),
            None => todo.push((group, false)),
        }
    }
    say_time(&todo, extent, folder);
    let mut failed = Vec::new();
    for (index, (group, goes_on)) in todo.iter().enumerate() {
        let mut origin = Origin {
            extent: extent.clone(),
            commit: commit.clone(),
            machine: machine.clone(),
            date: machine::today(),
            command: command.into(),
            seconds: None,
            has_failures: false,
        };
        if !goes_on {
            // Values of another run must never stand beside this one's origin.
            let _ = std::fs::remove_file(results::csv_path(folder, group));
        }
        results::write_origin(folder, group, &origin)?;
        let title = format!("[{}/{}] {}", index + 1, todo.len(), group.name);
        let started = Instant::now();
        let outcome = build(group, &title).and_then(|()| drive(group, extent, folder, *goes_on, &title));
        origin.seconds = Some(started.elapsed().as_secs());
        origin.has_failures = outcome.is_err();
        if let Err(error) = outcome {
            eprintln!("{}: {error}", group.name);
            failed.push(group.name);
        }
        results::write_origin(folder, group, &origin)?;
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "not complete: {}; --resume runs what is missing",
            failed.join(", ")
        ))
    }
}

/// States the time that it will need.
fn say_time(todo: &[(&Group, bool)], extent: &Extent, folder: &Path) {
    let mut total = 0;
    for (group, _) in todo {
        let (build, run) = group.estimate(extent);
        // What it took here before is the better guess.
        let before = results::read_origin(folder, group).ok().flatten();
        let before = before
            .filter(|origin| origin.extent == *extent)
            .and_then(|origin| origin.seconds);
        let seconds = before.unwrap_or(build + run);
        let why = if before.is_some() {
            "as before"
        } else {
            "on two idle cores, a build from nothing included"
        };
        let all = if extent.work.is_empty() && extent.alloc.is_empty() {
            ""
        } else {
            "at most "
        };
        eprintln!(
            "{}: {all}about {} ({why})",
            group.name,
            HumanDuration(Duration::from_secs(seconds))
        );
        total += seconds;
    }
    if todo.len() > 1 {
        eprintln!("all: about {}", HumanDuration(Duration::from_secs(total)));
    }
}

fn cargo(verb: &[&str], group: &Group) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(verb).args(["--locked", "--quiet", "--manifest-path"]);
    command.arg(group.folder().join("Cargo.toml")).stdin(Stdio::null());
    if group.kind != Kind::Counts && std::env::var_os("CARGO_TARGET_DIR").is_none() {
        // One folder for all packages: the peers' C and C++ is built once.
        command
            .arg("--target-dir")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/benches"));
    }
    command
}

fn build(group: &Group, title: &str) -> Result<(), String> {
    let bar = ProgressBar::new_spinner().with_message(format!("{title}: builds"));
    bar.enable_steady_tick(Duration::from_millis(200));
    if bar.is_hidden() {
        eprintln!("{title}: builds");
    }
    for verb in group.builds() {
        let output = cargo(&verb, group).output();
        let output = output.map_err(|error| format!("cannot run cargo: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("cargo build failed:\n{said}"));
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Runs the group's driver; its tables go to a file beside its values.
fn drive(group: &Group, extent: &Extent, folder: &Path, goes_on: bool, title: &str) -> Result<(), String> {
    let fail = |error: std::io::Error| error.to_string();
    let csv = results::csv_path(folder, group);
    let tables = std::fs::File::create(folder.join(format!("{}-driver.md", group.name))).map_err(fail)?;
    let goes_on = goes_on && csv.exists();
    if goes_on && group.kind != Kind::Matrix {
        std::fs::remove_file(&csv).map_err(fail)?;
    }
    for verb in group.runs() {
        let mut command = cargo(&verb, group);
        command
            .arg("--")
            .args(group.arguments(extent))
            .arg("--csv")
            .arg(std::path::absolute(&csv).map_err(fail)?);
        if goes_on && group.kind == Kind::Matrix {
            command.arg("--resume");
        }
        watch(command.stdout(tables.try_clone().map_err(fail)?), title)?;
    }
    Ok(())
}

/// Runs a driver and shows how far it is.
fn watch(command: &mut Command, title: &str) -> Result<(), String> {
    let fail = |error: std::io::Error| error.to_string();
    let mut child = command
        .env("STEPALLOC_PROGRESS", "lines")
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    let style = |text: &str| ProgressStyle::with_template(text).map_err(|error| error.to_string());
    // Until the driver says how much there is to do; one that runs in one piece never does.
    let bar = ProgressBar::new_spinner().with_message(title.to_string());
    bar.set_style(style("{msg} {spinner} {elapsed} so far")?);
    bar.enable_steady_tick(Duration::from_millis(200));
    if bar.is_hidden() {
        eprintln!("{title}: runs");
    }
    let (counting, mut said) = (style("{msg} {wide_bar} {pos}/{len}, {elapsed} so far, {eta} to go")?, 0);
    for line in BufReader::new(child.stderr.take().ok_or("no standard error")?).lines() {
        let line = line.map_err(fail)?;
        let Some((done, total)) = progress(&line) else {
            bar.suspend(|| eprintln!("{line}"));
            continue;
        };
        if bar.length() != Some(total) {
            bar.set_style(counting.clone());
            bar.set_length(total);
        }
        bar.set_position(done);
        // Where nobody watches a terminal, a line for each tenth.
        if bar.is_hidden() && done * 10 / total.max(1) > said {
            said = done * 10 / total.max(1);
            eprintln!("{title}: {done}/{total}");
        }
    }
    let status = child.wait().map_err(fail)?;
    bar.finish_and_clear();
    if status.success() {
        Ok(())
    } else {
        Err(format!("the driver failed: {status}"))
    }
}

/// What a line of progress says: `12/570 processes, 9 s`.
fn progress(line: &str) -> Option<(u64, u64)> {
    let (counts, _) = line.split_once(" processes, ")?;
    let (done, total) = counts.split_once('/')?;
    Some((done.parse().ok()?, total.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn progress_is_read_from_the_drivers_lines() {
        assert_eq!(super::progress("12/570 processes, 9 s"), Some((12, 570)));
        assert_eq!(super::progress("pair on System, round 0: failed"), None);
    }
}
