//! Which instructions the products of weights use.

use std::sync::OnceLock;

/// An instruction set that this CPU has, for products of weights with vectors.
///
/// AVX-512 and AVX2 give results equal to the bit. The portable one rounds products before it adds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The kernel of this process, once it is chosen.
static CURRENT: OnceLock<Kernel> = OnceLock::new();

impl Kernel {
    /// Names of all kernels, those that this CPU lacks included.
    pub const NAMES: [&str; 3] = ["portable", "avx2", "avx512"];

    /// The kernels that this CPU can run, slowest first.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self(Set::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2 {
                all.push(Self(Set::Avx2));
            }
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vbmi")
            {
                all.push(Self(Set::Avx512));
            }
        }
        all
    }

    /// A kernel by its name; `None` if there is no such, or this CPU cannot run it.
    pub fn named(name: &str) -> Option<Self> {
        Self::available().into_iter().find(|k| k.name() == name)
    }

    /// `portable`, `avx2` (with FMA and F16C) or `avx512` (F, BW and VBMI: Ice Lake, Zen 4 and later).
    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
        }
    }

    /// The kernel that the runtime uses: the one chosen, otherwise the fastest.
    pub fn current() -> Self {
        let best = || {
            Self::available()
                .last()
                .copied()
                .unwrap_or(Self(Set::Portable))
        };
        *CURRENT.get_or_init(best)
    }

    /// Makes the runtime of this process use this kernel. Returns whether it does: once another was chosen, or used, it
    /// stays.
    pub fn choose(self) -> bool {
        *CURRENT.get_or_init(|| self) == self
    }

    pub(crate) fn set(self) -> Set {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_kernel_has_its_name_and_the_portable_one_is_always_there() {
        let available = Kernel::available();
        assert_eq!(available[0].name(), "portable");
        for kernel in &available {
            assert!(Kernel::NAMES.contains(&kernel.name()));
            assert_eq!(Kernel::named(kernel.name()), Some(*kernel));
        }
        assert_eq!(Kernel::named("sse9"), None);
        // What was used stays.
        let current = Kernel::current();
        assert!(current.choose());
        for other in available.into_iter().filter(|&k| k != current) {
            assert!(!other.choose());
        }
    }
}
