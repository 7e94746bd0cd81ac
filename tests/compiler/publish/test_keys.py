"""Keys: in files, in several hands, in a PKCS#11 token (SoftHSM) and behind a key service (a simulated AWS KMS)."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from compiler.cli.keys import NEW_PASSWORD_VARIABLE
from compiler.cli.main import cli
from compiler.errors import ExtraMissing, OutputExists, PublishError, PublishTrustError
from compiler.publish.client import verify
from compiler.publish.keys import PASSWORD_VARIABLE, change_password, create_keys, held_keys, write_public
from compiler.publish.release import Signing, init, publish, refresh
from compiler.publish.repository import load
from compiler.publish.rotate import adopt_root, rotate, sign_root
from compiler.publish.signers import PIN_VARIABLE, import_key
from tests.compiler.publish.conftest import NOW, Build, tree

SOFTHSM = next((p for p in Path("/usr/lib").glob("**/softhsm/libsofthsm2.so")), None)
needs_softhsm = pytest.mark.skipif(
    shutil.which("softhsm2-util") is None or SOFTHSM is None or importlib.util.find_spec("pkcs11") is None,
    reason="SoftHSM (Debian package softhsm2) or python-pkcs11 is not installed",
)


def command(*arguments: object, **environment: str) -> Any:
    """What an edgewright command says with --json."""
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False, env=environment)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# --- several hands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def holders(tmp_path: Path) -> list[Signing]:
    """Three people, each with a root key in a folder of their own."""
    people = [Signing(tmp_path / name, now=NOW) for name in ("alice", "bob", "carol")]
    for person in people:
        create_keys(person.keys, "root", 1, None)
    return people


@pytest.fixture
def shared(tmp_path: Path, holders: list[Signing], signing: Signing, build: Build) -> Path:
    """A repository that two of three holders must sign for; their private keys were never in the publisher's folder."""
    for person in holders:
        [key] = held_keys(person.keys, "root")
        public = key.public()
        assert public is not None
        write_public(tmp_path / "handed-over.pub", public)
        import_key(signing.keys, "root", str(tmp_path / "handed-over.pub"))
    init(tmp_path / "shared", signing, root_threshold=2)
    for person in holders[:2]:
        sign_root(tmp_path / "shared" / "metadata" / "1.root.json", person)
    publish(build(), tmp_path / "shared", signing, channel="stable", release="1")
    return tmp_path / "shared"


def test_a_root_holds_when_a_threshold_of_holders_has_signed(
    tmp_path: Path, holders: list[Signing], signing: Signing, shared: Path, build: Build
) -> None:
    init(tmp_path / "fresh", signing, root_threshold=2)
    root = tmp_path / "fresh" / "metadata" / "1.root.json"
    with pytest.raises(PublishTrustError, match="not signed by as many root keys") as caught:
        publish(build("early"), tmp_path / "fresh", signing, channel="stable", release="1")
    assert "release sign" in caught.value.remedy
    first = sign_root(root, holders[2])
    assert (first.have, first.needed, len(first.added)) == (1, 2, 1)
    assert sign_root(root, holders[2]).added == ()
    assert sign_root(root, holders[0]).have == 2
    verify(tmp_path / "fresh")
    # Nothing of this needed a root key again.
    verify(shared)
    refresh(shared, signing, everything=True)


def test_a_new_key_for_an_online_role_by_draft(shared: Path, holders: list[Signing], signing: Signing) -> None:
    trusted = shared / "metadata" / "1.root.json"
    draft = shared.parent / "draft.json"
    before = tree(shared)
    done = rotate(shared, signing, "timestamp", draft=draft)
    assert tree(shared) == before and done.draft == draft
    with pytest.raises(OutputExists):
        rotate(shared, signing, "timestamp", draft=draft)
    with pytest.raises(PublishTrustError, match="lacks signatures"):
        adopt_root(shared, draft, signing)
    for person in holders[1:]:
        sign_root(draft, person)
    assert adopt_root(shared, draft, signing).version == 2
    verify(shared, root=trusted)
    done.old_files[0].unlink()
    refresh(shared, signing)
    verify(shared, root=trusted)
    with pytest.raises(PublishTrustError, match="is at 2"):
        adopt_root(shared, draft, signing)


def test_a_lost_holders_key_is_replaced_by_the_two_others(
    shared: Path, holders: list[Signing], signing: Signing, tmp_path: Path
) -> None:
    trusted, draft = shared / "metadata" / "1.root.json", tmp_path / "draft.json"
    dave = Signing(tmp_path / "dave", now=NOW)
    [key] = create_keys(dave.keys, "root", 1, None)
    public = key.public()
    assert public is not None
    write_public(tmp_path / "dave.pub", public)
    come = import_key(signing.keys, "root", str(tmp_path / "dave.pub"))
    [lost] = held_keys(holders[2].keys, "root")
    gone = lost.public()
    assert gone is not None
    done = rotate(shared, signing, "root", retire=[gone.keyid[:12]], use=[come.path.stem], draft=draft)
    assert done.retired == (gone.keyid,) and public.keyid in done.trusted and len(done.trusted) == 3
    for person in holders[:2]:
        sign_root(draft, person)
    adopt_root(shared, draft, signing)
    verify(shared, root=trusted)
    assert load(shared).root.signed.roles["root"].threshold == 2


def test_one_stolen_root_key_changes_nothing(shared: Path, holders: list[Signing], signing: Signing) -> None:
    """The threshold is not met: neither by the thief's own rotation nor by a draft."""
    thief, draft = replace(signing, keys=holders[0].keys), shared.parent / "draft.json"
    before = tree(shared)
    with pytest.raises(PublishError):
        rotate(shared, thief, "targets")
    rotate(shared, thief, "targets", draft=draft)
    with pytest.raises(PublishTrustError, match="lacks signatures"):
        adopt_root(shared, draft, signing)
    assert tree(shared) == before


def test_a_root_is_renewed_and_its_threshold_raised(tmp_path: Path, signing: Signing, build: Build) -> None:
    repo = tmp_path / "repo"
    init(repo, signing, root_keys=3)
    later = replace(signing, now=NOW + 86_400 * 100)
    first = load(repo).root.signed.expires
    done = rotate(repo, later, "root", renew=True, threshold=2)
    assert (done.retired, done.root_version) == ((), 2)
    root = load(repo).root.signed
    assert root.roles["root"].threshold == 2 and (root.expires - first).days == 100
    with pytest.raises(PublishError, match="threshold of 4"):
        rotate(repo, later, "root", renew=True, threshold=4)
    with pytest.raises(PublishError, match="no root"):
        rotate(repo, later, "stable", renew=True)


def test_lifetimes_are_remembered_by_the_role(tmp_path: Path, signing: Signing) -> None:
    from compiler.publish.repository import Lifetimes

    days = replace(signing, lifetimes=Lifetimes(chosen={"timestamp": 3, "stable": 40}))
    init(tmp_path / "repo", days)
    refresh(tmp_path / "repo", signing, everything=True)  # as the cron job, which knows nothing of them
    repository = load(tmp_path / "repo")
    left = {r: (m.signed.expires.timestamp() - NOW) / 86_400 for r, m in repository.channels.items()}
    assert left == {"stable": 40}
    assert repository.timestamp.signed.expires.timestamp() == NOW + 3 * 86_400
    assert repository.snapshot.signed.expires.timestamp() == NOW + 30 * 86_400
    with pytest.raises(PublishError, match="no lifetime"):
        Lifetimes(chosen={"timestamp": 0})


# --- files and commands ------------------------------------------------------------------------------------------------


def test_the_commands(tmp_path: Path) -> None:
    secret = {PASSWORD_VARIABLE: "one"}
    keys = tmp_path / "keys"
    made = command("keys", "create", keys, "--role", "root", "--count", 2, **secret)
    assert [k["name"] for k in made["keys"]] == ["root-1", "root-2"] and made["encrypted"]
    handed = command("keys", "export", keys, "--name", "root-2", "-o", tmp_path / "b.pub")
    assert handed["keys"][0]["keyid"] == made["keys"][1]["keyid"]
    command("keys", "create", tmp_path / "mine", "--role", "root", **secret)
    theirs = command("keys", "import", tmp_path / "mine", tmp_path / "b.pub", "--role", "root")
    assert theirs["keys"][0]["kind"] == "public"
    done = command("release", "init", tmp_path / "repo", "--keys", tmp_path / "mine", "--root-threshold", 2, **secret)
    assert not done["complete"]
    command("release", "sign", done["root"], "--keys", keys, **secret)
    listed = command("keys", "list", tmp_path / "mine", "--repo", tmp_path / "repo")["keys"]
    assert {k["name"]: k["trusted_for"] for k in listed} == {
        "root-1": ["root"],
        "root-2": ["root"],
        "snapshot": ["snapshot"],
        "stable": ["stable"],
        "targets": ["targets"],
        "timestamp": ["timestamp"],
    }
    plain = CliRunner().invoke(cli, ["keys", "list", str(tmp_path / "mine")])
    assert "public key only" in plain.output
    draft = tmp_path / "draft.json"
    mine = ("--keys", tmp_path / "mine")
    command("release", "rotate", tmp_path / "repo", *mine, "--role", "root", "--renew", "--draft", draft, **secret)
    assert command("release", "sign", draft, "--keys", keys, **secret)["have"] == 2
    assert command("release", "adopt", tmp_path / "repo", draft, "--keys", tmp_path / "mine", **secret)["version"] == 2
    changed = command("keys", "password", keys, **secret, **{NEW_PASSWORD_VARIABLE: "two"})
    assert len(changed["files"]) == 2
    with pytest.raises(PublishError, match="does not open"):
        command("release", "sign", draft, "--keys", keys, **secret)
    assert command("release", "sign", draft, "--keys", keys, **{PASSWORD_VARIABLE: "two"})["added"] == []


@pytest.mark.parametrize("role", ("../up", "a/b", "root-1", "", "a.b", "*"))
def test_what_is_no_role_is_refused(tmp_path: Path, role: str) -> None:
    with pytest.raises(PublishError, match="is no role"):
        create_keys(tmp_path / "keys", role, 1, None)
    assert not (tmp_path / "keys").exists()


def test_a_password_changes_for_all_files_or_none(tmp_path: Path, signing: Signing) -> None:
    create_keys(signing.keys, "root", 2, "old")
    create_keys(signing.keys, "targets", 1, "another")
    before = tree(signing.keys)
    with pytest.raises(PublishError, match="does not open"):
        change_password(signing.keys, "old", "new")
    assert tree(signing.keys) == before
    (signing.keys / "targets.pem").unlink()
    change_password(signing.keys, "old", None)
    assert all(b"ENCRYPTED" not in data for data in tree(signing.keys).values())
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in signing.keys.iterdir())


@pytest.mark.parametrize("content", (b"", b"[]", b"{}", b'{"keyid": 3}', b"[" * 100_000, b"\xff"))
def test_what_is_no_public_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pub").write_bytes(content)
    with pytest.raises(PublishError, match="no public key"):
        import_key(tmp_path / "keys", "root", str(tmp_path / "x.pub"))


# --- tokens and services -----------------------------------------------------------------------------------------------


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A SoftHSM token with an EC key pair of id 2; its URI."""
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(
        f"directories.tokendir = {tmp_path / 'tokens'}\nobjectstore.backend = file\n"
    )
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    monkeypatch.setenv("PYKCS11LIB", str(SOFTHSM))
    monkeypatch.setenv(PIN_VARIABLE, "1234")
    # In children: a process keeps the first configuration of the module that it loads.
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", "fleet", "--so-pin", "5678", "--pin", "1234"],
        check=True,
        capture_output=True,
    )
    make = (
        "import os, pkcs11; from pkcs11.util.ec import encode_named_curve_parameters as c\n"
        "with pkcs11.lib(os.environ['PYKCS11LIB']).get_token(token_label='fleet').open(rw=True, user_pin='1234') as s:\n"
        "    s.create_domain_parameters(pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: c('secp256r1')}, local=True)"
        ".generate_keypair(store=True, id=b'\\x02', label='timestamp')\n"
    )
    subprocess.run([sys.executable, "-c", make], check=True, capture_output=True)
    yield "hsm:2?label=fleet"


@needs_softhsm
def test_a_token_signs_and_never_gives_its_key_away(token: str, tmp_path: Path, build: Build) -> None:
    """In a child, as every command runs: the PKCS#11 module reads its configuration once per process."""
    keys, repo = tmp_path / "keys", tmp_path / "repo"
    folder = build()

    def edgewright(*arguments: object, pin: str = "1234") -> subprocess.CompletedProcess[str]:
        code = "from compiler.cli.main import main; main()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, PIN_VARIABLE: pin})

    for arguments in (
        ("keys", "import", keys, token, "--role", "timestamp"),
        ("release", "init", repo, "--keys", keys, "--no-password"),
        ("release", "publish", folder, repo, "--keys", keys, "--no-password", "--release", "1"),
    ):
        done = edgewright(*arguments)
        assert done.returncode == 0, done.stderr
    assert not list(keys.glob("timestamp*.pem"))
    key = next(iter(load(repo).root.signed.roles["timestamp"].keyids))
    assert load(repo).root.signed.keys[key].scheme == "ecdsa-sha2-nistp256"
    assert verify(repo).releases == {"stable/toy": ("1",)}
    before = tree(repo / "metadata")
    wrong = edgewright("release", "refresh", repo, "--keys", keys, "--no-password", pin="9999")
    assert wrong.returncode == 2 and "cannot sign" in wrong.stderr and "PIN" in wrong.stderr
    assert tree(repo / "metadata") == before


class KeyService:
    """What AWS KMS answers to securesystemslib, with keys made here. (moto's does not sign digests, only whole messages.)"""

    def __init__(self) -> None:
        self.keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("first", "second")}

    def get_public_key(self, KeyId: str) -> dict[str, Any]:
        public = self.keys[KeyId].public_key()
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return {"PublicKey": der, "SigningAlgorithms": ["ECDSA_SHA_256"], "KeySpec": "ECC_NIST_P256"}

    def sign(self, KeyId: str, Message: bytes, MessageType: str, SigningAlgorithm: str) -> dict[str, Any]:
        assert (MessageType, SigningAlgorithm, len(Message)) == ("DIGEST", "ECDSA_SHA_256", 32)
        return {"Signature": self.keys[KeyId].sign(Message, ec.ECDSA(Prehashed(SHA256())))}


@pytest.mark.skipif(importlib.util.find_spec("boto3") is None, reason="boto3 (extra s3) is not installed")
def test_a_key_service_signs(tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS KMS by URI; a new key comes in by rotation."""
    service = KeyService()
    monkeypatch.setattr("boto3.client", lambda name: service)
    signing, repo = Signing(tmp_path / "keys", now=NOW), tmp_path / "repo"
    import_key(signing.keys, "snapshot", "awskms:first")
    with pytest.raises(PublishError, match="holds this key"):
        import_key(signing.keys, "snapshot", "awskms:first")
    init(repo, signing)
    publish(build(), repo, signing, channel="stable", release="1")
    fresh = import_key(signing.keys, "snapshot", "awskms:second")
    done = rotate(repo, signing, "snapshot", use=[fresh.path.stem])
    assert [p.name for p in done.old_files] == ["snapshot.uri"]
    done.old_files[0].unlink()
    refresh(repo, signing)
    verify(repo, root=repo / "metadata" / "1.root.json")
    # A file that names another key of the service than the one that was imported: its signatures would hold nowhere.
    fresh.path.write_text("awskms:first\n")
    before = tree(repo / "metadata")
    with pytest.raises(PublishError, match="cannot sign"):
        refresh(repo, signing)
    assert tree(repo / "metadata") == before


@pytest.mark.parametrize(
    ("uri", "extra"),
    (
        ("gcpkms:projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1", "gcpkms"),
        ("azurekms:vault/key", "azurekms"),
        ("vault:key", "vault"),
    ),
)
def test_a_service_whose_package_is_missing_names_it(tmp_path: Path, uri: str, extra: str) -> None:
    module = {"gcpkms": "google.cloud.kms", "azurekms": "azure.identity", "vault": "hvac"}[extra]
    try:
        installed = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        installed = False
    if installed:
        pytest.skip(f"{module} is installed")
    with pytest.raises(ExtraMissing) as caught:
        import_key(tmp_path / "keys", "timestamp", uri)
    assert f"securesystemslib[{extra}]" in caught.value.remedy
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("uri", ("nonsense:1", "hsm:not-a-number", "file2:/does/not/exist", "plain"))
def test_a_uri_that_is_none_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(PublishError):
        import_key(tmp_path / "keys", "timestamp", uri)
    assert not (tmp_path / "keys").exists()
