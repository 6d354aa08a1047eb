//! Zipf-distributed ranks, by rejection-inversion.
//!
//! W. Hörmann, G. Derflinger, "Rejection-inversion to generate variates from monotone discrete
//! distributions", ACM TOMACS 6(3), 1996. No table: the memory does not grow with the number of
//! keys, and a draw costs a little more than one logarithm and one exponential.

use fastrand::Rng;

/// Draws ranks 0, 1, 2, … below `count`, rank r with probability proportional to (r + 1)^-theta.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zipf {
    count: f64,
    theta: f64,
    /// H(1.5) - 1 and H(count + 0.5): between them a uniform number is drawn.
    from: f64,
    to: f64,
    /// Below this distance from the rank's middle a draw is taken without a second look.
    near: f64,
}

impl Zipf {
    /// `count` is at least 1 and `theta` over 0.
    pub(crate) fn new(count: u64, theta: f64) -> Self {
        assert!(count >= 1 && theta > 0.0, "zipf needs a key and a positive theta");
        let mut zipf = Self { count: count as f64, theta, from: 0.0, to: 0.0, near: 0.0 };
        zipf.from = zipf.h(1.5) - 1.0;
        zipf.to = zipf.h(zipf.count + 0.5);
        zipf.near = 2.0 - zipf.h_inverse(zipf.h(2.5) - zipf.weight(2.0));
        zipf
    }

    /// The next rank.
    pub(crate) fn draw(&self, rng: &mut Rng) -> u64 {
        loop {
            let u = self.to + rng.f64() * (self.from - self.to);
            let x = self.h_inverse(u);
            let rank = x.round().clamp(1.0, self.count);
            if rank - x <= self.near || u >= self.h(rank + 0.5) - self.weight(rank) {
                return rank as u64 - 1;
            }
        }
    }

    /// x^-theta.
    fn weight(&self, x: f64) -> f64 {
        (-self.theta * x.ln()).exp()
    }

    /// The integral of [`Self::weight`]; written so that theta = 1 is no special case.
    fn h(&self, x: f64) -> f64 {
        let log = x.ln();
        expm1_over((1.0 - self.theta) * log) * log
    }

    fn h_inverse(&self, y: f64) -> f64 {
        let t = (y * (1.0 - self.theta)).max(-1.0);
        (ln_1p_over(t) * y).exp()
    }
}

/// (e^x - 1) / x, and its limit at 0.
fn expm1_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x / 2.0 }
}

/// ln(1 + x) / x, and its limit at 0.
fn ln_1p_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chi-squared against the exact probabilities; seeds are fixed, so this never flickers.
    #[test]
    fn ranks_come_as_often_as_zipf_says() {
        for (count, theta) in [(1, 0.99), (10, 0.5), (100, 0.99), (100, 1.0), (50, 2.5)] {
            let zipf = Zipf::new(count, theta);
            let mut rng = Rng::with_seed(42);
            let draws = 200_000;
            let mut seen = vec![0u32; count as usize];
            for _ in 0..draws {
                seen[zipf.draw(&mut rng) as usize] += 1;
            }
            let weights: Vec<f64> = (1..=count).map(|r| (r as f64).powf(-theta)).collect();
            let total: f64 = weights.iter().sum();
            let chi: f64 = weights
                .iter()
                .zip(&seen)
                .map(|(weight, seen)| {
                    let expected = f64::from(draws) * weight / total;
                    (f64::from(*seen) - expected).powi(2) / expected
                })
                .sum();
            // The mean is count - 1 and the variance twice that: five sigma.
            let bound = count as f64 - 1.0 + 5.0 * (2.0 * count as f64).sqrt();
            assert!(chi < bound, "count {count} theta {theta}: chi-squared {chi} over {bound}");
        }
    }
}
