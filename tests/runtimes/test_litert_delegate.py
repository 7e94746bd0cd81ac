"""External delegates with the real interpreter: one that takes no operator, one that cannot start, one that is not there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from runtimes.errors import ModelLoadError, RuntimeMissing
from runtimes.litert_session import OPENER
from runtimes.session import SessionOptions
from tests.runtimes.test_litert_session import _relu_file

pytest.importorskip("ai_edge_litert")
COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler for the delegate")

# The plugin interface of tensorflow/lite/delegates/external/external_delegate_interface.h; TfLiteDelegate as in
# tensorflow/lite/core/c/common.h. The option "fail" decides what goes wrong.
SOURCE = r"""
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct Delegate {
  void* data;
  int (*prepare)(void* context, struct Delegate* delegate);
  void* copy_from; void* copy_to; void* free_handle;
  int64_t flags;
  void* opaque;
} Delegate;

static int accept(void* context, Delegate* delegate) { (void)context; (void)delegate; return 0; }
static int refuse(void* context, Delegate* delegate) { (void)context; (void)delegate; return 1; }

Delegate* tflite_plugin_create_delegate(char** keys, char** values, size_t count, void (*report)(const char*)) {
  const char* fail = "";
  for (size_t i = 0; i < count; i++) if (!strcmp(keys[i], "fail")) fail = values[i];
  if (!strcmp(fail, "create")) { report("no such device"); return NULL; }
  Delegate* made = calloc(1, sizeof(Delegate));
  made->prepare = strcmp(fail, "prepare") ? accept : refuse;
  return made;
}

void tflite_plugin_destroy_delegate(Delegate* delegate) { free(delegate); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("delegate")
    (folder / "delegate.c").write_text(SOURCE)
    built = folder / "libdelegate.so"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(built), str(folder / "delegate.c")], check=True)
    return str(built)


def test_a_delegate_that_takes_nothing_leaves_the_cpu_to_answer(library: str, tmp_path: Path) -> None:
    options = SessionOptions(provider=library, provider_options=(("device", "0"),))
    with OPENER.open(_relu_file(tmp_path / "m.tflite"), options) as session:
        found = session.run({"x": np.array([[1, -1, 2], [0, 3, -4]], np.float32)})["y"]
        np.testing.assert_array_equal(found, [[1, 0, 2], [0, 3, 0]])


@pytest.mark.parametrize(("fail", "error"), [("create", RuntimeMissing), ("prepare", (ModelLoadError, RuntimeMissing))])
def test_a_delegate_that_fails_is_a_typed_error(
    library: str, tmp_path: Path, fail: str, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    options = SessionOptions(provider=library, provider_options=(("fail", fail),))
    with pytest.raises(error) as said:
        OPENER.open(_relu_file(tmp_path / "m.tflite"), options)
    assert said.value.remedy  # type: ignore[attr-defined]


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeMissing, match="cannot start the delegate"):
        OPENER.open(_relu_file(tmp_path / "m.tflite"), SessionOptions(provider=str(tmp_path / "libnone.so")))
