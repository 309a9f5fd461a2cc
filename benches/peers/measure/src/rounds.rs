//! The order in which contenders run: all of them once a round, shuffled anew each round, so that a slow minute of the
//! machine, and who ran just before whom, fall on all alike. The orders follow from the seed.

/// The orders of one matrix or group.
pub struct Rounds<T> {
    items: Vec<T>,
    random: fastrand::Rng,
}

impl<T> Rounds<T> {
    /// Of these contenders.
    pub fn new(items: impl IntoIterator<Item = T>, seed: u64) -> Self {
        Rounds {
            items: items.into_iter().collect(),
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// The next round's order.
    pub fn next_round(&mut self) -> &[T] {
        self.random.shuffle(&mut self.items);
        &self.items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_all_in_another_order() {
        let mut rounds = Rounds::new(0..20, 1);
        let orders: Vec<Vec<i32>> = (0..10).map(|_| rounds.next_round().to_vec()).collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..20).collect::<Vec<_>>());
        }
        assert!(orders.windows(2).all(|two| two[0] != two[1]));
    }

    #[test]
    fn orders_follow_from_the_seed() {
        let (mut one, mut other) = (Rounds::new(0..20, 7), Rounds::new(0..20, 7));
        assert_eq!(one.next_round(), other.next_round());
        assert_eq!(one.next_round(), other.next_round());
    }
}
