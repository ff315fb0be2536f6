"""The members of a sweep: overrides → names, configs and folders, checked before training."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from rnn_lm.config import check_config, set_field
from rnn_lm.data.corpus import Corpus
from rnn_lm.errors import UserError
from rnn_lm.fields import FIELDS, Value, get_field, of_sweep, short_name
from rnn_lm.mesh import DataMesh
from rnn_lm.program import cohort_of, program_of
from rnn_lm.runs.folder import CONFIG, another_folder, check_folder, has_ended, read_config
from rnn_lm.runs.load import adopt, text_and_origin
from rnn_lm.runs.origin import Origin, hashes_of
from rnn_lm.sweeps.lists import Override
from rnn_lm.sweeps.shared import LastBatches
from rnn_lm.training.memory import check_memory

MAX_NAME = 150  # characters; file systems allow 255 bytes
Texts = dict[tuple[str, str], tuple[Corpus, Origin | None]]  # those that members share, read once
_PLACES = {field: place for place, field in enumerate(FIELDS)}


@dataclass(frozen=True)
class Member:
    """A run of a sweep."""

    name: str
    overrides: dict[str, Value]
    config: ConfigDict
    workdir: Path
    corpus: Corpus
    origin: Origin | None = None

    @property
    def ended(self) -> bool:
        return has_ended(self.workdir, self.config)


def members_of(config: ConfigDict, sweep: Iterable[Override], workdir: Path) -> list[Member]:
    """The members of a sweep, each with `config`, its overrides and a folder in `workdir`.

    Raises:
      UserError: a member is invalid, or two have the same name.
    """
    members: dict[str, Member] = {}
    texts: Texts = {}
    for number, given in enumerate(sweep, start=1):
        member = member_of(config, given, workdir, texts, what=f"member {number} of the sweep")
        if member.name in members:
            raise UserError(
                f"two members of the sweep have the name {member.name}: {members[member.name].overrides} and "
                f"{member.overrides}; remove one of them"
            )
        members[member.name] = member
    return list(members.values())


def member_of(config: ConfigDict, given: Override, workdir: Path, texts: Texts, what: str) -> Member:
    """A member by its overrides, which `what` names in errors. `texts` gets its text.

    Raises:
      UserError: an override is invalid.
    """
    changed = config.copy_and_resolve_references()
    try:
        for field, value in given.items():
            if field == "workdir":
                raise UserError("workdir cannot be overridden: each member has a folder in the sweep's --workdir")
            if of_sweep(field):
                raise UserError(f"{field} cannot be overridden: it applies to the whole sweep")
            set_field(changed, field, value)
        changed = adopt(changed, given)
        check_config(changed)
    except UserError as error:
        raise UserError(f"{what}, {given}: {error}") from error
    overrides = {field: get_field(changed, field) for field in _in_order(given)}
    text = (changed.init_from, repr(changed.corpus.to_dict()))
    if text not in texts:
        texts[text] = text_and_origin(changed)
    name = name_of(overrides)
    return Member(name, overrides, changed, workdir / name, *texts[text])


def name_of(overrides: dict[str, Value]) -> str:
    """A member's name, `learning_rate=0.003,seed=1`: fields in the order of `FIELDS`, the seed last."""
    parts = [f"{short_name(field)}={shown(overrides[field])}" for field in _in_order(overrides)]
    full = ",".join(parts) or "base"
    name = re.sub(r"[^\w.,=+-]+", "-", full, flags=re.ASCII)[:MAX_NAME]
    return name if name == full else f"{name}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def _in_order(fields: Iterable[str]) -> list[str]:
    return sorted(fields, key=lambda field: (field == "seed", _PLACES[field]))


def shown(value: Value) -> str:
    """The shortest form of a value that a flag accepts."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_members(members: Iterable[Member], workdir: Path) -> None:
    """Raises UserError if a member cannot be trained."""
    seen, batches = set(), LastBatches()
    for member in members:
        config, corpus = member.config, member.corpus
        check_folder(member.workdir, config, hashes_of(corpus, member.origin), named=workdir)
        if (member.workdir / CONFIG).exists() and (steps := read_config(member.workdir)[0].steps) > config.steps:
            raise UserError(
                f"--workdir={workdir} trains for {steps} steps; set --config.steps to at least that, or "
                f"{another_folder(workdir)}"
            )
        if (cohort := cohort_of(config)) not in seen:
            seen.add(cohort)
            try:
                DataMesh.of(config.mesh.data)  # which checks that there are so many devices
                program, numbers = program_of(config, len(corpus.vocabulary))
                batches.of(program, corpus)  # which checks that the text is long enough
                check_memory(program, numbers.arrays())
            except UserError as error:
                raise UserError(f"{member.name}: {error}") from error
