//! Breaks the allocator on purpose and sees whether the tests notice.
//!
//! `list.toml` names the breaks and the lanes. Each break is a piece of a source file and what to put in its place; the
//! piece must stand in the file exactly once, so that a break whose code has moved on is told as *stale*, an error, and
//! not passed by. The project is copied to `target/tree-0` and so on, one tree for each worker; there each break is made,
//! the lanes meant to catch it are built and run with a time limit, and the file is put back. A lane that fails, crashes
//! or hangs has caught it.
//! First every lane that is used runs on the unbroken copy and must pass: a lane that is always red catches nothing.
//!
//! ```text
//! cargo run --manifest-path tests/mutations/Cargo.toml                 all of them
//! cargo run --manifest-path tests/mutations/Cargo.toml -- --list       what they are
//! ... -- --check                                                       only whether any is stale
//! ... -- --only fold-without-clearing-live-bits                        those whose name contains this
//! ... -- --only tiling --lane heap                                     with another lane than the list says
//! ... -- --breaks mine.toml                                            those of another file, by the same lanes
//! ```
//!
//! A break that names no lane is tried by the list's `usual` ones in turn: so a reviewer tries breaks of his own, with
//! no more than a name, a file and the two pieces for each.
//!
//! It ends with 1 if one survived that the list does not explain, is stale, or does not compile. A break with a
//! `survives` line is one that no test can see, and the line says why; if a lane catches it after all, that is an
//! error too, for then the explanation is wrong.

use anyhow::{bail, ensure, Context, Result};
use clap::Parser;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};
use wait_timeout::ChildExt;

/// Breaks the allocator on purpose, in a copy, and sees whether the lanes go red.
#[derive(Parser)]
struct Options {
    /// Only breaks whose name contains this; may be given more than once.
    #[arg(long)]
    only: Vec<String>,
    /// Tells the breaks and the lanes, runs nothing.
    #[arg(long)]
    list: bool,
    /// Looks whether each break's text is still there exactly once, runs nothing.
    #[arg(long)]
    check: bool,
    /// Runs these lanes instead of those that the list names.
    #[arg(long)]
    lane: Vec<String>,
    /// A file of breaks to try in place of the list's; its lanes are the list's.
    #[arg(long)]
    breaks: Option<PathBuf>,
    /// Does not run the lanes on the unbroken copy first.
    #[arg(long)]
    trust_lanes: bool,
    /// Breaks tried at once, each with a tree and builds of its own.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    workers: u16,
    /// Jobs of each worker's cargo.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    /// The lanes of a break that names none, in the order in which they are tried.
    #[serde(default)]
    usual: Vec<String>,
    #[serde(default)]
    lanes: BTreeMap<String, Lane>,
    mutation: Vec<Mutation>,
}

impl List {
    fn read(path: &Path) -> Result<List> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }
}

/// How a lane is run.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lane {
    /// What it is, for `--list`.
    what: String,
    /// Arguments of `cargo test`, up to what comes before `--`.
    #[serde(default)]
    test: Vec<String>,
    /// Arguments of the test program.
    #[serde(default)]
    args: Vec<String>,
    /// A script of the tree instead of `cargo test`; skipped where there is none, or where it says that it cannot run.
    script: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// What the crate is built with: `--cfg` and this. Such a build has a folder of its own.
    cfg: Option<String>,
    /// Without optimisation, as `cargo test` runs it: some tests count requests that release builds drop.
    #[serde(default)]
    debug: bool,
    /// A run that takes longer is a hang.
    seconds: u64,
}

/// One break.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutation {
    name: String,
    /// Under `src/`.
    file: String,
    find: String,
    replace: String,
    /// The invariant that no longer holds, and how.
    #[serde(default)]
    breaks: String,
    /// Run in this order until one is red; the list's usual ones where there are none.
    #[serde(default)]
    lanes: Vec<String>,
    /// Why no test can see it.
    survives: Option<String>,
}

/// What a script ends with that cannot run here: `SKIP` of `.ci/lanes`.
const SKIPPED: i32 = 90;

#[derive(Clone, PartialEq)]
enum Verdict {
    Caught(String),
    Survived,
    Explained,
    Stale(String),
    DoesNotCompile,
    NoLane,
}

#[derive(PartialEq)]
enum Run {
    Green,
    Red(&'static str),
    NotBuilt(String),
    NotThere,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.join("../..").canonicalize()?;
    let mut list = List::read(&here.join("list.toml"))?;
    if let Some(other) = &options.breaks {
        list.mutation = List::read(other)?.mutation;
    }
    for one in &mut list.mutation {
        if one.lanes.is_empty() {
            one.lanes.clone_from(&list.usual);
        }
    }
    check_list(&list)?;
    let wanted = |one: &&Mutation| options.only.is_empty() || options.only.iter().any(|part| one.name.contains(part));
    let mutations: Vec<&Mutation> = list.mutation.iter().filter(wanted).collect();
    ensure!(!mutations.is_empty(), "no break has such a name");
    if options.list {
        for one in &mutations {
            println!(
                "{:<44} {:<22} {}\n    {}",
                one.name,
                one.file,
                one.lanes.join(" "),
                one.breaks
            );
        }
        for (name, lane) in &list.lanes {
            println!("lane {name}: {}", lane.what);
        }
        println!("{} breaks", mutations.len());
        return Ok(());
    }
    if options.check {
        let stale = mutations.iter().filter_map(|one| broken(&root, one).err());
        let stale: Vec<String> = stale.map(|why| format!("{why:#}")).collect();
        stale.iter().for_each(|why| println!("{why}"));
        ensure!(stale.is_empty(), "{} of {} are stale", stale.len(), mutations.len());
        println!("{} breaks, none stale", mutations.len());
        return Ok(());
    }
    let workers = workers(&root, &here.join("target"), &options)?;
    if !options.trust_lanes {
        let used = mutations.iter().flat_map(|one| lanes_of(one, &options));
        let used: BTreeSet<_> = used.collect();
        let used = used.into_iter().map(|name| (list.lanes[name].script.is_some(), name));
        in_turn(&workers, used.collect(), |worker, name| {
            let start = Instant::now();
            match worker.run(&list.lanes[name])? {
                Run::Green => println!("unbroken, {name}: green, {} s", start.elapsed().as_secs()),
                Run::NotThere => println!("unbroken, {name}: there is no such lane here, skipped"),
                Run::Red(how) => bail!("the lane {name} is red ({how}) on unbroken code"),
                Run::NotBuilt(why) => bail!("the lane {name} does not compile:\n{why}"),
            }
            Ok(())
        })?;
    }
    let scripted = |one: &Mutation| {
        lanes_of(one, &options)
            .iter()
            .any(|lane| list.lanes[lane].script.is_some())
    };
    let tried = mutations.iter().map(|one| (scripted(one), *one)).collect();
    let verdicts = in_turn(&workers, tried, |worker, one| {
        let start = Instant::now();
        let verdict = judge(worker, &list, one, &options)?;
        println!("{:<44} {}, {} s", one.name, told(&verdict), start.elapsed().as_secs());
        Ok((one, verdict))
    })?;
    sum(&verdicts)
}

/// What each worker has of its own: a copy of the tree and what is built in it.
fn workers(root: &Path, target: &Path, options: &Options) -> Result<Vec<Worker>> {
    (0..options.workers)
        .map(|index| {
            let tree = target.join(format!("tree-{index}"));
            copy(root, &tree)?;
            Ok(Worker {
                tree,
                target: target.join(format!("broken-{index}")),
                jobs: options.jobs,
            })
        })
        .collect()
}

/// Does the tasks, each worker the next as soon as it has done one, and answers in no order; the first error ends it.
/// Those marked `true` run scripts, which build std and more: they are the first worker's alone, so that only its tree
/// holds such builds, and it has them first.
fn in_turn<T: Copy + Send, R: Send>(
    workers: &[Worker],
    tasks: Vec<(bool, T)>,
    one: impl Fn(&Worker, T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let (first, any): (VecDeque<_>, VecDeque<_>) = tasks.into_iter().partition(|(first, _)| *first);
    let (first, any) = (Mutex::new(first), Mutex::new(any));
    let answers = Mutex::new(Ok(vec![]));
    let next = |index| {
        // A failure elsewhere ends this worker too.
        answers.lock().unwrap().as_ref().ok()?;
        let mine = if index == 0 {
            first.lock().unwrap().pop_front()
        } else {
            None
        };
        mine.or_else(|| any.lock().unwrap().pop_front())
    };
    thread::scope(|scope| {
        for (index, worker) in workers.iter().enumerate() {
            let (next, one, answers) = (&next, &one, &answers);
            scope.spawn(move || {
                while let Some((_, task)) = next(index) {
                    let answer = one(worker, task);
                    let mut answers = answers.lock().unwrap();
                    match (answers.as_mut(), answer) {
                        (Ok(answers), Ok(answer)) => answers.push(answer),
                        (Ok(_), Err(why)) => *answers = Err(why),
                        (Err(_), _) => {}
                    }
                }
            });
        }
    });
    answers.into_inner().unwrap()
}

fn lanes_of<'a>(one: &'a Mutation, options: &'a Options) -> &'a [String] {
    if options.lane.is_empty() {
        &one.lanes
    } else {
        &options.lane
    }
}

/// Names are unique and lanes known.
fn check_list(list: &List) -> Result<()> {
    let mut names = BTreeSet::new();
    for one in &list.mutation {
        ensure!(names.insert(&one.name), "two breaks are named {}", one.name);
        ensure!(!one.lanes.is_empty(), "{} has no lane", one.name);
        for lane in &one.lanes {
            ensure!(list.lanes.contains_key(lane), "{}: there is no lane {lane}", one.name);
        }
    }
    Ok(())
}

/// The file with the break in it, and its path.
fn broken(root: &Path, one: &Mutation) -> Result<(PathBuf, String)> {
    let path = root.join("src").join(&one.file);
    let text = fs::read_to_string(&path).with_context(|| format!("{}: {}", one.name, path.display()))?;
    let count = text.matches(&one.find).count();
    ensure!(
        count == 1,
        "{}: its text stands {count} times in {}, not once",
        one.name,
        one.file
    );
    ensure!(one.find != one.replace, "{}: replaces nothing", one.name);
    Ok((path, text.replacen(&one.find, &one.replace, 1)))
}

/// Copies what the repository would keep; a file that is equal already keeps its time, so that nothing is built anew.
fn copy(root: &Path, tree: &Path) -> Result<()> {
    if tree.exists() {
        fs::remove_dir_all(tree.join("src")).ok();
    }
    let walk = ignore::WalkBuilder::new(root)
        .hidden(false)
        .filter_entry(|entry| entry.file_name() != ".git")
        .build();
    for entry in walk {
        let entry = entry?;
        let to = tree.join(entry.path().strip_prefix(root)?);
        if entry.file_type().is_some_and(|kind| kind.is_dir()) {
            fs::create_dir_all(&to)?;
        } else if fs::read(entry.path())? != fs::read(&to).unwrap_or_default() {
            fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}

fn judge(worker: &Worker, list: &List, one: &Mutation, options: &Options) -> Result<Verdict> {
    let (path, text) = match broken(&worker.tree, one) {
        Ok(made) => made,
        Err(why) => return Ok(Verdict::Stale(format!("{why:#}"))),
    };
    let before = fs::read_to_string(&path)?;
    fs::write(&path, text)?;
    let mut verdict = Verdict::NoLane;
    for name in lanes_of(one, options) {
        match worker.run(&list.lanes[name])? {
            Run::Red(how) => {
                verdict = Verdict::Caught(format!("{name}{how}"));
                break;
            }
            Run::NotBuilt(why) => {
                println!("{why}");
                verdict = Verdict::DoesNotCompile;
                break;
            }
            Run::Green => verdict = Verdict::Survived,
            Run::NotThere => {}
        }
    }
    fs::write(&path, before)?;
    Ok(match verdict {
        Verdict::Survived if one.survives.is_some() => Verdict::Explained,
        other => other,
    })
}

fn told(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Caught(by) => format!("caught by {by}"),
        Verdict::Survived => "SURVIVED".into(),
        Verdict::Explained => "survived, as explained".into(),
        Verdict::Stale(why) => format!("STALE: {why}"),
        Verdict::DoesNotCompile => "DOES NOT COMPILE".into(),
        Verdict::NoLane => "not run: its lane is not there".into(),
    }
}

fn sum(verdicts: &[(&Mutation, Verdict)]) -> Result<()> {
    let count = |wanted: fn(&Verdict) -> bool| verdicts.iter().filter(|(_, verdict)| wanted(verdict)).count();
    let caught = count(|verdict| matches!(verdict, Verdict::Caught(_)));
    let explained = count(|verdict| *verdict == Verdict::Explained);
    let survived = count(|verdict| *verdict == Verdict::Survived);
    let stale = count(|verdict| matches!(verdict, Verdict::Stale(_)));
    let uncompiled = count(|verdict| *verdict == Verdict::DoesNotCompile);
    let skipped = count(|verdict| *verdict == Verdict::NoLane);
    println!(
        "\n{} breaks: {caught} caught, {survived} survived, {explained} survived as explained, {stale} stale, \
         {uncompiled} do not compile, {skipped} not run",
        verdicts.len()
    );
    let mut wrong = 0;
    for (one, verdict) in verdicts {
        if let (Verdict::Caught(_), Some(_)) = (verdict, &one.survives) {
            println!("{}: the list says that it survives", one.name);
            wrong += 1;
        }
        if let Verdict::Survived | Verdict::Stale(_) | Verdict::DoesNotCompile = verdict {
            println!("{}: {}", one.name, told(verdict));
        }
    }
    ensure!(survived + stale + uncompiled + wrong == 0, "not every break was caught");
    ensure!(caught + explained > 0, "nothing was run");
    Ok(())
}

struct Worker {
    tree: PathBuf,
    target: PathBuf,
    jobs: usize,
}

impl Worker {
    fn run(&self, lane: &Lane) -> Result<Run> {
        let mut command = match &lane.script {
            Some(script) => {
                if !self.tree.join(script.split(' ').next().unwrap_or(script)).exists() {
                    return Ok(Run::NotThere);
                }
                // A script is red too where the break does not compile, which shows nothing.
                let checked = self.cargo("check", lane).arg("--lib").output()?;
                if !checked.status.success() {
                    return Ok(Run::NotBuilt(String::from_utf8_lossy(&checked.stderr).into_owned()));
                }
                let mut command = self.command("bash", lane);
                command.args(["-c", &format!("exec {script}")]);
                command
            }
            None => {
                let mut build = self.cargo_test(lane);
                let built = build.arg("--no-run").output()?;
                if !built.status.success() {
                    return Ok(Run::NotBuilt(String::from_utf8_lossy(&built.stderr).into_owned()));
                }
                let mut command = self.cargo_test(lane);
                command.arg("--").args(&lane.args);
                command
            }
        };
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let ended = child.wait_timeout(Duration::from_secs(lane.seconds))?;
        Ok(match ended {
            Some(status) if status.success() => Run::Green,
            Some(status) if lane.script.is_some() && status.code() == Some(SKIPPED) => Run::NotThere,
            Some(_) => Run::Red(""),
            None => {
                // The whole group: a test's children hang with it.
                Command::new("kill")
                    .args(["-KILL", "--", &format!("-{}", child.id())])
                    .status()?;
                child.wait()?;
                Run::Red(", which hung")
            }
        })
    }

    fn command(&self, program: &str, lane: &Lane) -> Command {
        // At most 12 GiB of memory, so that a break that allocates without end harms nobody else.
        let mut command = Command::new("bash");
        command.args(["-c", r#"ulimit -Sd 12582912 && exec "$@""#, "bash", program]);
        command
            .current_dir(&self.tree)
            .envs(&lane.env)
            .env("CARGO_TARGET_DIR", &self.target);
        if let Some(cfg) = &lane.cfg {
            command.env("RUSTFLAGS", format!("--cfg {cfg}"));
            command.env("CARGO_TARGET_DIR", self.target.join(cfg));
        }
        // The same seed each time, so that a break that is caught today is caught tomorrow.
        command
            .env("STEPALLOC_CHAOS_SEED", "7")
            .env("CARGO_INCREMENTAL", "1")
            .env("CARGO_TERM_COLOR", "never");
        command
    }

    fn cargo_test(&self, lane: &Lane) -> Command {
        let mut command = self.cargo("test", lane);
        command.args(&lane.test);
        command
    }

    fn cargo(&self, what: &str, lane: &Lane) -> Command {
        let mut command = self.command("cargo", lane);
        // `cargo run` sets these for us; the copy's cargo must find its own.
        command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO");
        command.args([what, "--quiet", "--locked", "--jobs", &self.jobs.to_string()]);
        if !lane.debug {
            command.arg("--release");
        }
        command
    }
}
