"""One file per family of MIL operations; importing this package registers all of them."""

from runtimes.coreml_reference.ops import (  # noqa: F401
    activation,
    classification,
    compression,
    convolution,
    detection,
    elementwise,
    indexing,
    layout,
    linear,
    lists,
    normalization,
    pooling,
    random,
    recurrent,
    reduction,
    resizing,
    sampling,
    states,
    tensors,
)
