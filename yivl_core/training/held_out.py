"""Which records are held out for validation: whole groups that share an image, so that no image is on both sides."""

from collections.abc import Sequence

from yivl_core.digests import digest_json


def split_held_out(keys: Sequence[Sequence[str]], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and indices to hold out, both in the given order.

    Which groups are held out depends on their keys and the seed alone, not on the order of the records. At least one record is
    trained on: where all records share one image, none is held out.

    Args:
        keys: for each record what ties it to others: digests of its images, or of the record itself where it has none.
        fraction: share of the records to hold out; above 0, at least one record is.
        seed: of the choice.
    """
    groups = _groups(keys)
    wanted = max(1, round(fraction * len(keys))) if fraction > 0 else 0
    held_out: set[int] = set()
    for members in sorted(groups, key=lambda members: digest_json([seed, min(min(keys[index]) for index in members)])):
        if len(held_out) >= wanted:
            break
        if len(held_out) + len(members) < len(keys):
            held_out.update(members)
    return [index for index in range(len(keys)) if index not in held_out], sorted(held_out)


def _groups(keys: Sequence[Sequence[str]]) -> list[list[int]]:
    """Records that are tied to each other, directly or through others (union-find)."""
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        while parents.setdefault(key, key) != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for record_keys in keys:
        for key in record_keys[1:]:
            parents[root(key)] = root(record_keys[0])
    members: dict[str, list[int]] = {}
    for index, record_keys in enumerate(keys):
        members.setdefault(root(record_keys[0]), []).append(index)
    return list(members.values())
