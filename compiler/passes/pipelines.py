"""PASSES by name, and PIPELINES: the orders in which they run, each constraint with its reason beside it."""

from __future__ import annotations

from compiler.passes.base import Pass
from compiler.passes.rewrites.canonical_clip import CanonicalClip
from compiler.passes.rewrites.canonical_gemm import CanonicalGemm
from compiler.passes.rewrites.coalesce_transpose import CoalesceTranspose
from compiler.passes.rewrites.drop_identity import DropIdentity
from compiler.passes.rewrites.fold_affine import FoldAffine
from compiler.passes.rewrites.fold_batch_norm import FoldBatchNorm
from compiler.passes.rewrites.fold_pool_pad import FoldPoolPad
from compiler.passes.rewrites.fuse_hard_swish import FuseHardSwish
from compiler.passes.rewrites.fuse_mish import FuseMish
from compiler.passes.rewrites.global_pool import GlobalPool
from compiler.passes.rewrites.matmul_to_gemm import MatMulToGemm
from compiler.passes.rewrites.merge_reshapes import DropNoOpReshape, MergeReshapes
from compiler.passes.rewrites.merge_transposes import DropNoOpTranspose, MergeTransposes
from compiler.passes.rewrites.shapes_to_reshape import ShapesToReshape
from compiler.passes.simplify import InferShapes, Simplify
from compiler.passes.structure import (
    Flatten,
    MergeEqual,
    NameAll,
    RemoveUnused,
    ShareEqual,
    Sort,
    StripMetadata,
    UntieWeights,
)
from profiles.registry import Registry

PASSES: Registry[Pass] = Registry(
    "pass", how_to_add="Add a file in compiler/passes/rewrites/ and its instance to compiler/passes/pipelines.py."
)
for _instance in (
    StripMetadata(),
    Flatten(),
    NameAll(),
    Simplify(),
    InferShapes(),
    DropIdentity(),
    FoldBatchNorm(),
    MatMulToGemm(),
    CanonicalGemm(),
    FoldAffine(),
    FoldPoolPad(),
    FuseHardSwish(),
    FuseMish(),
    CanonicalClip(),
    GlobalPool(),
    ShapesToReshape(),
    DropNoOpReshape(),
    MergeReshapes(),
    DropNoOpTranspose(),
    MergeTransposes(),
    CoalesceTranspose(),
    ShareEqual(),
    MergeEqual(),
    UntieWeights(),
    RemoveUnused(),
    Sort(),
):
    PASSES.add(_instance.name, _instance)

PIPELINES: dict[str, tuple[str, ...]] = {
    # Once, before the rewrites.
    "prepare": (
        "strip_metadata",  # first: nothing later needs stack traces, and they are most of a torch export's bytes
        "flatten",  # before simplify: an initializer that is also an input counts as fed, so nothing folds
        "name_all",  # before simplify: it addresses nodes and values by name
        "simplify",
        "flatten",  # again: simplify may leave Constant nodes
        "infer_shapes",  # before the rewrites: most checks ask for static shapes
    ),
    # Again and again until none of them changes anything.
    "rewrite": (
        "drop_identity",  # first: an Identity between two nodes hides every other pattern
        "drop_no_op_transpose",
        "drop_no_op_reshape",
        "fold_batch_norm",
        "matmul_to_gemm",  # before fold_affine, which puts the bias into the Gemm
        "canonical_gemm",
        "fold_affine",
        "fold_pool_pad",
        "fuse_hard_swish",
        "fuse_mish",
        "canonical_clip",
        "global_pool",  # before shapes_to_reshape: it may leave a Reshape
        "shapes_to_reshape",  # before merge_reshapes, which knows Reshape only
        "merge_reshapes",
        "merge_transposes",
        "coalesce_transpose",  # after the merges: they may take the Transpose away
        "remove_unused",  # last: a bypassed node without readers would hold on to its inputs as a second reader
    ),
    # Once, after the rewrites.
    "finish": (
        "strip_metadata",  # again: simplify writes down the source's names, options and what it did
        "sort",  # before share_equal, which keeps the first of equal tensors: then the first does not depend on history
        "share_equal",
        "merge_equal",  # after share_equal: nodes are equal if they read the very same values
        "untie_weights",  # after share_equal, which does not know which of the equal tensors are weights
        "name_all",  # after untie_weights, which makes new values
        "infer_shapes",  # values made by the rewrites get their shapes
        "sort",  # last: the order of the file
    ),
}
