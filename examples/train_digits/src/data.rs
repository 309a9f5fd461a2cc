//! The digits: reading, checking, and the split into a training and a held-out part.
//!
//! A row is 64 pixels of 0 to 16, then the label, as in the file that `data/README.md` describes. The file is part
//! of the binary, so that a run needs no working directory; another one of the same form can be named instead.

use std::io::Read;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use rand::seq::SliceRandom;
use rand::Rng;

/// Pixels of an image: 8 by 8.
pub const PIXELS: usize = 64;
/// Labels are the digits 0 to 9.
pub const CLASSES: usize = 10;
/// The largest value of a pixel in the file; pixels are divided by it.
const PIXEL_MAX: u8 = 16;
/// One row in this many is held out, chosen at random.
const HELD_OUT_SHARE: usize = 5;

static BUNDLED: &[u8] = include_bytes!("../data/digits.csv.gz");

/// Images with their labels.
#[derive(Debug, Default, PartialEq)]
pub struct Digits {
    /// [`PIXELS`] values of 0 to 1 for each image, one image after the other.
    pub pixels: Vec<f32>,
    /// A label below [`CLASSES`] for each image.
    pub labels: Vec<u32>,
}

impl Digits {
    /// Reads `path`, or the bundled file where there is none.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or a row is not 64 pixels and a label; the error names the file and the row.
    pub fn load(path: Option<&Path>) -> Result<Digits> {
        match path {
            None => Digits::parse(BUNDLED).context("in the bundled digits"),
            Some(path) => {
                let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                Digits::parse(&bytes).with_context(|| format!("in {}", path.display()))
            }
        }
    }

    /// Reads CSV, packed with gzip or plain.
    fn parse(bytes: &[u8]) -> Result<Digits> {
        let mut text = Vec::new();
        if bytes.starts_with(&[0x1f, 0x8b]) {
            flate2::read::MultiGzDecoder::new(bytes)
                .read_to_end(&mut text)
                .context("the gzip data is damaged")?;
        } else {
            text.extend_from_slice(bytes);
        }
        let mut digits = Digits::default();
        let mut rows = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .from_reader(&text[..]);
        for (index, row) in rows.records().enumerate() {
            row.map_err(anyhow::Error::from)
                .and_then(|row| digits.push(&row))
                .with_context(|| format!("row {}", index + 1))?;
        }
        Ok(digits)
    }

    fn push(&mut self, row: &csv::StringRecord) -> Result<()> {
        ensure!(
            row.len() == PIXELS + 1,
            "{} fields where {PIXELS} pixels and a label belong",
            row.len()
        );
        for (column, field) in row.iter().take(PIXELS).enumerate() {
            match field.trim().parse::<u8>() {
                Ok(value) if value <= PIXEL_MAX => self.pixels.push(f32::from(value) / f32::from(PIXEL_MAX)),
                _ => bail!(
                    "pixel {} is {field:?}, not a whole number of 0 to {PIXEL_MAX}",
                    column + 1
                ),
            }
        }
        match row[PIXELS].trim().parse::<u32>() {
            Ok(label) if (label as usize) < CLASSES => self.labels.push(label),
            _ => bail!("the label is {:?}, not a digit", &row[PIXELS]),
        }
        Ok(())
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Shuffles with `rng` and splits: what to train on, and the fifth that is held out.
    ///
    /// # Errors
    ///
    /// There are too few images for both parts.
    pub fn split(&self, rng: &mut impl Rng) -> Result<(Digits, Digits)> {
        ensure!(
            self.len() >= HELD_OUT_SHARE,
            "{} rows are too few to train on",
            self.len()
        );
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.shuffle(rng);
        let (held_out, train) = order.split_at(self.len() / HELD_OUT_SHARE);
        Ok((self.select(train), self.select(held_out)))
    }

    fn select(&self, rows: &[usize]) -> Digits {
        let mut part = Digits::default();
        for &row in rows {
            part.pixels
                .extend_from_slice(&self.pixels[row * PIXELS..(row + 1) * PIXELS]);
            part.labels.push(self.labels[row]);
        }
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn row(pixel: &str, label: &str) -> String {
        format!("{}{label}\n", format!("{pixel},").repeat(PIXELS))
    }

    fn error_of(text: &str) -> String {
        format!("{:#}", Digits::parse(text.as_bytes()).unwrap_err())
    }

    #[test]
    fn the_bundled_file_holds_1797_digits_of_each_kind() {
        let digits = Digits::load(None).unwrap();
        assert_eq!(digits.len(), 1_797);
        assert_eq!(digits.pixels.len(), 1_797 * PIXELS);
        assert!(digits.pixels.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
        for class in 0..CLASSES as u32 {
            assert!(digits.labels.iter().filter(|&&label| label == class).count() > 170);
        }
    }

    #[test]
    fn the_split_keeps_every_image_once() {
        let digits = Digits::load(None).unwrap();
        let (train, held_out) = digits.split(&mut rand_chacha::ChaCha8Rng::seed_from_u64(1)).unwrap();
        assert_eq!(held_out.len(), 359);
        let key = |digits: &Digits| {
            let images = digits.pixels.chunks(PIXELS).zip(&digits.labels);
            images
                .map(|(image, label)| (image.iter().map(|p| p.to_bits()).collect::<Vec<_>>(), *label))
                .collect()
        };
        let mut parts: Vec<_> = key(&train);
        parts.extend(key(&held_out));
        let mut all = key(&digits);
        parts.sort();
        all.sort();
        assert_eq!(parts, all);
    }

    #[test]
    fn bad_rows_are_named() {
        let good = row("3", "7");
        assert_eq!(Digits::parse(good.as_bytes()).unwrap().labels, [7]);
        assert_eq!(
            error_of("1,2,3\n"),
            "row 1: 3 fields where 64 pixels and a label belong"
        );
        assert_eq!(
            error_of(&(good.clone() + &row("3", "10"))),
            "row 2: the label is \"10\", not a digit"
        );
        assert_eq!(
            error_of(&row("17", "1")),
            "row 1: pixel 1 is \"17\", not a whole number of 0 to 16"
        );
        assert_eq!(
            error_of(&row("-1", "1")),
            "row 1: pixel 1 is \"-1\", not a whole number of 0 to 16"
        );
        assert!(Digits::parse(b"\x1f\x8bnot gzip").is_err());
        assert!(Digits::load(Some(Path::new("/no/such/file"))).is_err());
        assert!(Digits::default()
            .split(&mut rand_chacha::ChaCha8Rng::seed_from_u64(1))
            .is_err());
    }
}
