//! What the runs are judged by, and how they are shown. The runs come as they were made: an array with the runs of
//! each of [`VARIANTS`].

use comfy_table::{presets, CellAlignment, Table};
use train_digits::message::{Outcome, Seen};

/// Held-out accuracy below this fails.
const ACCURACY_AT_LEAST: f64 = 0.95;

/// A way to run the training.
pub struct Variant {
    /// As shown.
    pub name: &'static str,
    /// The binary that runs it.
    pub worker: &'static str,
    /// Whether it opens a scope around each step.
    pub scopes: bool,
}

/// The ways that are compared; the first is what the others are measured by.
pub const VARIANTS: [Variant; 3] = [
    Variant {
        name: "System",
        worker: "train_system",
        scopes: false,
    },
    Variant {
        name: "stepalloc, no scope",
        worker: "train_stepalloc",
        scopes: false,
    },
    Variant {
        name: "stepalloc, scope a step",
        worker: "train_stepalloc",
        scopes: true,
    },
];

/// The runs of each variant.
pub type Runs = [Vec<Outcome>; VARIANTS.len()];

/// A run, as it ends.
pub fn one_line(run: &Outcome) -> String {
    format!(
        "{:.2} ms a step, {} page faults a step, accuracy {}",
        median_millis(run),
        faults_a_step(run).map_or("?".into(), |faults| format!("{faults:.1}")),
        percent(run.accuracy)
    )
}

/// A line for each variant: medians over its rounds, of each round's median step, of its ratio to `System` in the
/// same round, of its mean page faults and of its peak.
pub fn table(runs: &Runs) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header([
        "",
        "ms a step (median)",
        "to System",
        "page faults a step",
        "peak resident MiB",
        "accuracy",
    ]);
    let system = &runs[0];
    for (variant, runs) in VARIANTS.iter().zip(runs) {
        let millis = median(runs.iter().map(median_millis));
        // Round by round: a machine that is busy for a while slows a whole round, not one variant of it.
        let to_system = median(
            runs.iter()
                .zip(system)
                .map(|(run, system)| median_millis(run) / median_millis(system)),
        );
        let faults: Option<Vec<f64>> = runs.iter().map(faults_a_step).collect();
        let peaks: Option<Vec<u64>> = runs.iter().map(|run| run.peak_resident_bytes).collect();
        table.add_row([
            variant.name.to_string(),
            format!("{millis:.2}"),
            format!("{to_system:.2}"),
            faults.map_or("?".into(), |faults| format!("{:.1}", median(faults))),
            peaks.map_or("?".into(), |peaks| {
                format!("{:.1}", mib(median(peaks.into_iter().map(|b| b as f64))))
            }),
            percent(runs[0].accuracy),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// What the scopes of the first run with scopes counted.
pub fn what_scopes_saw(runs: &Runs) -> String {
    let Some(run) = runs.iter().flatten().find(|run| run.first_step.is_some()) else {
        return "no run had scopes".into();
    };
    let mut text = String::new();
    if let Some(first) = &run.first_step {
        text += &format!("the first step's scope saw {}\n", seen(first));
    }
    let mut later = run.counted_steps.clone();
    later.sort_by_key(|step| step.escapees);
    if let (Some(least), Some(most)) = (later.first(), later.last()) {
        text += &format!("one of {} later scopes saw {}\n", later.len(), seen(least));
        if most.escapees != least.escapees {
            text += &format!("the one with most escapees saw {}\n", seen(most));
        }
    }
    text
}

fn seen(step: &Seen) -> String {
    format!(
        "{} blocks, {:.1} MiB, at most {:.1} MiB of it at a time; {} escapees, {} bytes",
        step.blocks,
        mib(step.bytes as f64),
        mib(step.peak_live_bytes as f64),
        step.escapees,
        step.escapee_bytes
    )
}

/// What is wrong with the runs; empty where all is well.
pub fn verdict(runs: &Runs) -> Vec<String> {
    let mut faults = Vec::new();
    let expected = &runs[0][0];
    for (variant, runs) in VARIANTS.iter().zip(runs) {
        for (round, run) in (1..).zip(runs) {
            let name = format!("{} in round {round}", variant.name);
            let pairs = run.loss_bits.iter().zip(&expected.loss_bits);
            if let Some(step) = pairs.clone().position(|(a, b)| a != b) {
                let [loss, other] = [run, expected].map(|run| f32::from_bits(run.loss_bits[step]));
                let differing = pairs.filter(|(a, b)| a != b).count();
                faults.push(format!(
                    "{name}: {differing} losses differ from {}'s, the first at step {step}: {loss:e}, not {other:e}",
                    VARIANTS[0].name
                ));
            }
            if run.loss_bits.len() != expected.loss_bits.len() {
                faults.push(format!(
                    "{name}: {} losses, not {}",
                    run.loss_bits.len(),
                    expected.loss_bits.len()
                ));
            }
        }
        if let Some(run) = runs
            .iter()
            .find(|run| run.accuracy.is_nan() || run.accuracy < ACCURACY_AT_LEAST)
        {
            let (accuracy, least) = (percent(run.accuracy), percent(ACCURACY_AT_LEAST));
            faults.push(format!("{}: accuracy {accuracy}, below {least}", variant.name));
        }
        let mut seen = runs
            .iter()
            .flat_map(|run| run.first_step.iter().chain(&run.counted_steps));
        if seen.any(|step| !step.installed) {
            faults.push(format!(
                "{}: stepalloc is not its allocator, so the scopes saw nothing",
                variant.name
            ));
        }
    }
    faults
}

fn median_millis(run: &Outcome) -> f64 {
    median(run.step_nanos.iter().map(|&nanos| nanos as f64)) / 1e6
}

/// The mean: a median would hide faults that come in bursts.
fn faults_a_step(run: &Outcome) -> Option<f64> {
    let steps = run.step_faults.len();
    (steps > 0).then(|| run.step_faults.iter().sum::<u64>() as f64 / steps as f64)
}

/// The middle value (the upper one of two); NaN of none.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn mib(bytes: f64) -> f64 {
    bytes / (1024.0 * 1024.0)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(losses: &[f32], accuracy: f64) -> Outcome {
        Outcome {
            loss_bits: losses.iter().map(|loss| loss.to_bits()).collect(),
            accuracy,
            step_nanos: vec![3_000_000, 1_000_000, 2_000_000],
            step_faults: vec![0, 0, 9],
            peak_resident_bytes: None,
            first_step: None,
            counted_steps: Vec::new(),
        }
    }

    fn three(other: Outcome) -> Runs {
        [vec![run(&[2.5, 1.5], 0.97)], vec![other], vec![run(&[2.5, 1.5], 0.97)]]
    }

    #[test]
    fn equal_runs_pass() {
        assert_eq!(verdict(&three(run(&[2.5, 1.5], 0.95))), [""; 0]);
    }

    #[test]
    fn one_bit_of_one_loss_fails() {
        let faults = verdict(&three(run(&[2.5, f32::from_bits(1.5f32.to_bits() + 1)], 0.97)));
        assert_eq!(faults.len(), 1);
        assert!(
            faults[0].contains("1 losses differ") && faults[0].contains("at step 1"),
            "{faults:?}"
        );
    }

    #[test]
    fn too_few_losses_poor_accuracy_and_an_allocator_not_installed_fail() {
        assert_eq!(verdict(&three(run(&[2.5], 0.97))).len(), 1);
        assert_eq!(verdict(&three(run(&[2.5, 1.5], 0.949))).len(), 1);
        assert_eq!(verdict(&three(run(&[2.5, 1.5], f64::NAN))).len(), 1);
        let seen = Seen {
            installed: false,
            blocks: 0,
            bytes: 0,
            peak_live_bytes: 0,
            escapees: 0,
            escapee_bytes: 0,
        };
        let other = Outcome {
            first_step: Some(seen),
            ..run(&[2.5, 1.5], 0.97)
        };
        assert_eq!(verdict(&three(other)).len(), 1);
    }

    #[test]
    fn medians_and_means() {
        let run = run(&[], 1.0);
        assert_eq!(median_millis(&run), 2.0);
        assert_eq!(faults_a_step(&run), Some(3.0));
        assert!(median([]).is_nan());
    }
}
