//! Medians and the like. An empty sample has no median: `None`, and the table shows a dash.

/// The median; the mean of the middle two where the count is even.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    quantile(values, 0.5)
}

/// Half the distance between the quartiles over the median: how far the rounds of one cell lie apart.
pub fn spread(values: &[f64]) -> Option<f64> {
    let (low, middle, high) = (
        quantile(values.iter().copied(), 0.25)?,
        quantile(values.iter().copied(), 0.5)?,
        quantile(values.iter().copied(), 0.75)?,
    );
    (values.len() > 2 && middle != 0.0).then(|| (high - low) / 2.0 / middle)
}

/// The geometric mean of positive values.
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let logs: Vec<f64> = values.into_iter().map(f64::ln).collect();
    (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

/// The arithmetic mean.
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.into_iter().collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// From how many rounds on an interval is given. Of five values the interval is their whole range, which holds the true
/// median 15 times in 16; of fewer it would claim more than it knows.
pub const LEAST_ROUNDS: usize = 5;

/// The 95 % confidence interval of the geometric mean of the samples' medians, by the percentile bootstrap: each sample is
/// drawn from itself with replacement, 2,000 times. `None` if a sample has fewer than [`LEAST_ROUNDS`] values or one that
/// is not positive.
pub fn interval(samples: &[Vec<f64>]) -> Option<(f64, f64)> {
    const DRAWS: usize = 2000;
    let fits = |sample: &Vec<f64>| sample.len() >= LEAST_ROUNDS && sample.iter().all(|&value| value > 0.0);
    if samples.is_empty() || !samples.iter().all(fits) {
        return None;
    }
    // A fixed seed: the same results give the same tables.
    let mut random = fastrand::Rng::with_seed(0xb007);
    let mut draw = || {
        let medians = samples
            .iter()
            .map(|sample| median((0..sample.len()).map(|_| sample[random.usize(..sample.len())])).unwrap_or(f64::NAN));
        geometric_mean(medians).unwrap_or(f64::NAN)
    };
    let draws: Vec<f64> = (0..DRAWS).map(|_| draw()).collect();
    Some((quantile(draws.iter().copied(), 0.025)?, quantile(draws, 0.975)?))
}

fn quantile(values: impl IntoIterator<Item = f64>, share: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let place = share * last as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(below + (above - below) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_empty_samples() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
    }

    #[test]
    fn spread_is_half_the_quartile_distance() {
        assert_eq!(spread(&[1.0, 2.0, 3.0, 4.0, 5.0]), Some(1.0 / 3.0));
        assert_eq!(spread(&[1.0, 1.0]), None);
    }

    #[test]
    fn an_interval_holds_the_median_and_narrows_with_the_rounds() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut sample = |count: usize| (0..count).map(|_| 1.0 + random.f64()).collect::<Vec<f64>>();
        let (few, many) = (sample(7), sample(200));
        let (low, high) = interval(std::slice::from_ref(&few)).unwrap();
        let (narrow_low, narrow_high) = interval(std::slice::from_ref(&many)).unwrap();
        assert!(low <= median(few).unwrap() && median(many).unwrap() <= narrow_high);
        assert!(narrow_high - narrow_low < (high - low) / 2.0);
    }

    #[test]
    fn a_sound_share_of_intervals_holds_the_truth() {
        let mut random = fastrand::Rng::with_seed(5);
        let holds = (0..100).filter(|_| {
            let sample: Vec<f64> = (0..15).map(|_| 1.0 + random.f64()).collect();
            let (low, high) = interval(&[sample]).unwrap();
            (low..=high).contains(&1.5)
        });
        let share = holds.count() as f64 / 100.0;
        assert!((0.87..1.0).contains(&share), "{share}");
    }

    #[test]
    fn few_rounds_or_a_zero_have_no_interval() {
        assert_eq!(interval(&[vec![1.0; 4]]), None);
        assert_eq!(interval(&[vec![1.0, 1.0, 1.0, 0.0, 1.0]]), None);
        assert_eq!(
            interval(&[vec![2.0; 5], vec![8.0; 5]]).map(|(low, _)| (low * 1e9).round()),
            Some(4e9)
        );
    }

    #[test]
    fn means() {
        assert!((geometric_mean([1.0, 4.0]).unwrap() - 2.0).abs() < 1e-12);
        assert_eq!(mean([1.0, 4.0]), Some(2.5));
    }
}
