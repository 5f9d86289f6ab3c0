"""Sites: what a patch replaces, by its short name, with the axes along which patches are told apart."""

from collections.abc import Mapping, Sequence

from headscope.analysis.recording.record import readable_hooks
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.names import get_act_name
from headscope.model.transformer import HookedTransformer

__all__ = ["AXES", "SITES", "as_sites", "patch_axes"]

# A pattern's own position is the query's (the destination of what attention moves).
AXES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("resid_pre", "resid_mid", "resid_post", "attn_out", "mixer_out", "mlp_out"), ("layer", "pos")),
    **dict.fromkeys(("z", "q", "k", "v"), ("layer", "pos", "head")),
    "pattern": ("layer", "head", "dest_pos", "src_pos"),
}
SITES = tuple(AXES)


def patch_axes(site: str, by_position: bool) -> tuple[str, ...]:
    """Return the axes of whole patches of a site: all that is attended to from a position goes together.

    Example:
        >>> patch_axes("pattern", True), patch_axes("z", True), patch_axes("z", False)
        (('layer', 'head', 'pos'), ('layer', 'pos', 'head'), ('layer', 'head'))
    """
    axes = [axis.replace("dest_pos", "pos") for axis in AXES[site] if axis != "src_pos"]
    return tuple(axis for axis in axes if by_position or axis != "pos")


def as_sites(model: HookedTransformer, sites: str | Sequence[str]) -> dict[str, dict[int, str]]:
    """Return the hook points of one site or several, by layer, of those layers that have it; named twice counts once.

    Raises:
        InvalidInputError: If no site is named, the model has no such site, or a module stands at its hook point.
        UnknownNameError: For a site that does not exist.
    """
    layers, hook_names = range(model.cfg.n_layers), {}
    names_of = {site: {layer: get_act_name(site, layer) for layer in layers} for site in SITES}
    for site in (sites,) if isinstance(sites, str) else sites:
        if site not in AXES:
            raise unknown_name("site", str(site), SITES, code="HS-NAME-06")
        found = readable_hooks(model, names_of[site].values())
        if not found:
            there = [each for each in SITES if any(name in model.hook_dict for name in names_of[each].values())]
            raise InvalidInputError(f"this model has no {site!r}: its blocks have {', '.join(there)}.")
        hook_names[site] = {layer: name for layer, name in names_of[site].items() if name in found}
    if not hook_names:
        raise InvalidInputError(f"give at least one site: {', '.join(SITES)}.")
    return hook_names
