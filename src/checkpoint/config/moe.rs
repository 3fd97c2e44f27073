//! The fields of `config.json` about a mixture of experts.

use crate::checkpoint::error::Result;
use crate::checkpoint::fields::Fields;

/// Most experts accepted, and the widest: their product with the largest hidden size fits in 64 bits.
const MAX_EXPERTS: usize = 1 << 12;
const MAX_EXPERT_SIZE: usize = 1 << 18;

/// The experts that every layer has beside its MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoeConfig {
    /// Experts of a layer.
    pub num_experts: usize,
    /// Experts that a token is given to; at most `num_experts`.
    pub top_k_experts: usize,
    /// Width of one expert.
    pub moe_intermediate_size: usize,
}

impl MoeConfig {
    /// The experts; `None` where `enable_moe_block` is false or absent, and transformers reads none of the other fields.
    /// Without the flag a number of experts is an error, since the file contradicts itself.
    pub(super) fn parse(text: &Fields, unified: bool) -> Result<Option<Self>> {
        const FLAG: &str = "enable_moe_block";
        const COUNT: &str = "num_experts";
        if !text.flag(FLAG, false)? {
            let silent = text.get(FLAG).is_none();
            if silent && text.size_opt(COUNT, MAX_EXPERTS)?.unwrap_or(0) > 0 {
                return Err(text.missing(FLAG, "true or false where num_experts is set"));
            }
            return Ok(None);
        }
        if unified {
            return Err(text.unsupported(FLAG, "false in gemma4_unified"));
        }
        let moe = Self {
            num_experts: text.count(COUNT, MAX_EXPERTS)?,
            top_k_experts: text.count("top_k_experts", MAX_EXPERTS)?,
            moe_intermediate_size: text.count("moe_intermediate_size", MAX_EXPERT_SIZE)?,
        };
        if moe.top_k_experts > moe.num_experts {
            let expected = format!("at most the {} experts", moe.num_experts);
            return Err(text.invalid("top_k_experts", expected, moe.top_k_experts));
        }
        Ok(Some(moe))
    }
}
