"""Multi-head attention and its kernels: softmax and the truncated Maclaurin series."""

from networks.attention.kernel import (
    AttentionKernel,
    BatchState,
    KeyValues,
    SoftmaxAttention,
    select_rows,
)
from networks.attention.maclaurin import (
    MaclaurinState,
    count_features,
    maclaurin_attention,
    maclaurin_attention_naive,
    maclaurin_features,
    maclaurin_step,
    truncated_exp,
    truncation_error,
)
from networks.attention.maclaurin_kernel import MaclaurinAttention
from networks.attention.multi_head import MultiHeadAttention, ResidualAttentionBlock

__all__ = [
    "AttentionKernel",
    "BatchState",
    "KeyValues",
    "MaclaurinAttention",
    "MaclaurinState",
    "MultiHeadAttention",
    "ResidualAttentionBlock",
    "SoftmaxAttention",
    "count_features",
    "maclaurin_attention",
    "maclaurin_attention_naive",
    "maclaurin_features",
    "maclaurin_step",
    "select_rows",
    "truncated_exp",
    "truncation_error",
]
