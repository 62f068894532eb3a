"""Models on disk, without pickle."""

import json
import re
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import scipy.sparse as sp

from ._fitted import check_home, freeze
from ._format import read, write
from ._saving import is_mapped
from ._wals import WALS
from .recommender import Recommender
from .weights import power_law

__all__ = ["load"]

_KIND = "model"
_FACTORS, _NUMBERS, _IDS = ("f4", "f8"), ("f8",), None
#: The attributes of the classes that a file may hold. Of an array: its dimensions and its types, of
#: other values: their class. Dimensions of the same name agree.
_ATTRIBUTES = {
    power_law: {},
    WALS: {
        "components_": ("km", _FACTORS),
        "row_factors_": ("nk", _FACTORS),
        "row_weights_": ("n", _NUMBERS),
        "col_weights_": ("m", _NUMBERS),
        "_row_mass": ("n", _NUMBERS),
        "_col_mass": ("m", _NUMBERS),
        "n_features_in_": Integral,
        "n_iter_": Integral,
        "loss_": Real,
        "rwse_": Real,
        "loss_curve_": ("t", _NUMBERS),
        "rwse_curve_": ("t", _NUMBERS),
        "seconds_": ("t", _NUMBERS),
        "feature_names_in_": ("m", _IDS),
        "row_ids_": ("n", _IDS),
        "col_ids_": ("m", _IDS),
        "_sklearn_output_config": dict,
    },
    Recommender: {
        "users_": ("n", _IDS),
        "items_": ("m", _IDS),
        "interactions_": sp.csr_array,
        "estimator_": WALS,
        "mean_": Real,
        "user_biases_": ("n", _NUMBERS),
        "item_biases_": ("m", _NUMBERS),
        "n_features_in_": Integral,
        "feature_names_in_": ("c", _IDS),
        "_by_y": bool,
        "_library": str | None,
        "_names": tuple,
        "_sklearn_output_config": dict,
    },
}
#: What all fitted models of a class have, if they have the first of it: what stands first above.
_FITTED = {
    power_law: (),
    WALS: tuple(_ATTRIBUTES[WALS])[:8],
    Recommender: tuple(_ATTRIBUTES[Recommender])[:8],
}
#: A cache, and what belongs to the program that trains.
_LEFT_OUT = ("_places", "_skl_callbacks", "_metadata_request")
#: What arrays are stored as that are not of numbers.
_STORED = {"M": "<i8", "m": "<i8", "U": "<u4", "S": "u1"}
_CLASSES = {cls.__name__: cls for cls in _ATTRIBUTES}


def save(model, path):
    """Do what `WALS.save` and `Recommender.save` say."""
    arrays = {}
    write(path, arrays, _encode(model, "", arrays), kind=_KIND)


def load(path, *, mmap=False):
    """Load a model that `WALS.save` or `Recommender.save` wrote.

    Parameters
    ----------
    path : str or path-like
        The file. Nothing in it is executed: it holds numbers and text.

    mmap : bool, default=False
        Whether to leave large arrays in the file, and map it: opening then takes no time and hardly
        any memory, and processes that open the same file share what they read of it. The arrays
        of the model are then read-only; `WALS.partial_fit` copies what it changes.

    Returns
    -------
    model : WALS or Recommender
        With the same parameters, and the same results to the bit.

    Raises
    ------
    ValueError
        If the file is none of these, is damaged, or is from a newer version of this package.

    OSError
        If it cannot be read.

    Notes
    -----
    Left out of a file are callbacks and requests of metadata (``set_fit_request``), which belong to
    the program that trains. Parameters that a file of an older version does not have get their
    defaults.

    The file is one of safetensors: its arrays can be read by the package of this name. Of ids, each
    row has the code points of a string, or its bytes; a transposed array has a name that ends in
    ``.T``. See ``wals/_format.py`` for what else is in it.

    All of it is checked by checksums, against accidents, not against forgery: with ``mmap=True``
    the arrays of less than a MiB, and all that tells where arrays are, but not what large arrays
    hold, since they are not read.

    A file that is mapped must not be written to or made shorter: the process would be killed. To
    save over it, or to rename another file to its name, is safe: those who have it open keep the
    old one.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import wals
    >>> from wals.datasets import load_msweb
    >>> X = load_msweb()
    >>> path = Path(tempfile.mkdtemp()) / "msweb.wals"
    >>> wals.WALS(n_components=16, max_iter=5, random_state=0).fit(X).save(path)
    >>> served = wals.load(path, mmap=True)
    >>> served
    WALS(max_iter=5, n_components=16, random_state=0)
    >>> served.recommend(X[:1], n=3)[0].shape
    (1, 3)
    """
    content, arrays = read(path, kind=_KIND, mmap=mmap)
    try:
        model = _decode(content, arrays)
        if type(model) not in (WALS, Recommender) or arrays:
            raise ValueError("it holds something else than a model")
    # What wrong text, numbers and names may lead to; the checksums make it unlikely.
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        raise ValueError(f"{path} holds no model that can be read: {error!r}") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from None
    return model


# ------------------------------------------------------------------------------------------ values
#
# JSON has None, bools, ints, finite floats, strings and lists. All else is an object with one
# member, which is named by the type.

#: How values of a type become JSON, and again what they were.
_TO_JSON = {
    bytes: bytes.hex,
    UUID: str,
    Decimal: str,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: lambda value: [value.days, value.seconds, value.microseconds],
    float: repr,  # if it is not finite
}
_ZONES = {
    type(None): lambda zone: None,
    timezone: lambda zone: _TO_JSON[timedelta](zone.utcoffset(None)),
    ZoneInfo: lambda zone: zone.key,
}
_FROM_JSON = {
    "bytes": bytes.fromhex,
    "UUID": UUID,
    "Path": Path,
    "Decimal": Decimal,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda numbers: timedelta(*numbers),
    "float": float,
}


def _encode(value, name, arrays):
    """Return a value as what JSON has, and put the arrays in it among others.

    Parameters
    ----------
    value : object
    name : str
        Its place in the model, where it has one: what arrays and errors are named by.
    arrays : dict of str to ndarray
    """
    kind = type(value)
    if value is None or kind in (bool, int, str) or (kind is float and np.isfinite(value)):
        return value
    if kind in _TO_JSON and getattr(value, "tzinfo", None) is None:
        content = _TO_JSON[kind](value)
    elif isinstance(value, Path):
        kind, content = Path, str(value)
    elif kind is list:
        return [_encode(item, name, arrays) for item in value]
    elif kind is tuple:
        content = _encode([*value], name, arrays)
    elif kind is dict:
        content = _encode([[*pair] for pair in value.items()], name, arrays)
    elif kind is datetime and type(value.tzinfo) in _ZONES:
        zone = _ZONES[type(value.tzinfo)](value.tzinfo)
        content = [value.replace(tzinfo=None).isoformat(), value.fold, zone]
    elif kind in _CLASSES.values():
        content = _encode_model(value, name, arrays)
    elif kind is np.random.RandomState and value.get_state()[0] == "MT19937":
        content = _encode([*value.get_state()], name, arrays)
    elif kind is sp.csr_array:
        parts = ("data", "indices", "indptr")
        parts = [_encode(getattr(value, part), f"{name}.{part}", arrays) for part in parts]
        content = [[*map(int, value.shape)], *parts]
    elif isinstance(value, np.generic) and value.dtype.kind in "biufMmUS":
        dtype, kind = value.dtype.newbyteorder("<"), np.generic
        content = [dtype.str, np.asarray(value, dtype).tobytes().hex()]
    elif kind in (np.ndarray, np.memmap) and value.dtype.kind in "biufMmUSO" and arrays is not None:
        kind, content = np.ndarray, _encode_array(value, name, arrays)
    else:
        hint = ""
        if callable(value):
            hint = ": use wals.weights.power_law, or an array"
        elif hasattr(value, "__array__"):
            hint = ": pass it as a NumPy array"
        raise ValueError(
            f"{name or 'The model'} is or has a {kind.__qualname__}, which a file cannot hold"
            f"{hint}. It is {value!r:.200}"
        )
    return {kind.__name__: content}


def _encode_array(array, name, arrays):
    """Return the name, the type and whether the transpose is what was put among the arrays."""
    if array.dtype == object:
        if array.ndim != 1:
            raise ValueError(f"{name} is an array of objects of {array.ndim} dimensions, not 1.")
        text = json.dumps([_encode(item, name, None) for item in array.tolist()])
        arrays[name] = np.frombuffer(text.encode(), np.uint8)
        return [name, "O", False]
    transposed = array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous
    if transposed:
        array, name = array.T, f"{name}.T"
    dtype = array.dtype.newbyteorder("<")
    if not dtype.itemsize:  # empty strings
        dtype = np.dtype(f"<{dtype.kind}1")
    arrays[name] = array = np.asarray(array, dtype, order="C")
    if dtype.kind in _STORED:
        stored = array[..., None] if dtype.kind in "US" else array
        arrays[name] = stored.view(_STORED[dtype.kind])
    return [name, dtype.str, transposed]


def _encode_model(model, name, arrays):
    """Return the parameters and the attributes of an object of one of the classes."""
    cls, params = type(model), model.get_params(deep=False)
    attributes = {
        name: value
        for name, value in vars(model).items()
        if name not in params and name not in _LEFT_OUT
    }
    if _FITTED[cls] and _FITTED[cls][0] in attributes:
        check_home(model, {WALS: "row_factors_", Recommender: "interactions_"}[cls])
    for unknown in attributes.keys() - _ATTRIBUTES[cls].keys():
        raise ValueError(
            f"The attribute {unknown} is none that a {cls.__name__} has by itself: delete it, and "
            "keep it elsewhere."
        )
    _check(cls, attributes)
    prefix = f"{name}." if name else ""
    return [
        {name: _encode(value, prefix + name, arrays) for name, value in values.items()}
        for values in (params, attributes)
    ]


def _decode(content, arrays):
    """Return the value that `_encode` made this of, and take its arrays from among others."""
    if isinstance(content, list):
        return [_decode(item, arrays) for item in content]
    if not isinstance(content, dict):
        return content
    ((kind, content),) = content.items()
    if kind in _FROM_JSON:
        return _FROM_JSON[kind](content)
    if kind == "tuple":
        return tuple(_decode(content, arrays))
    if kind == "dict":
        return dict(_decode(content, arrays))
    if kind == "datetime":
        return _decode_datetime(*content)
    if kind == "generic":
        return np.frombuffer(bytes.fromhex(content[1]), _dtype(content[0]), 1)[0]
    if kind == "ndarray":
        return _decode_array(*content, arrays)
    if kind == "csr_array":
        matrix = sp.csr_array(tuple(content[0]))
        # The constructor would look for a smaller type of indices.
        matrix.data, matrix.indices, matrix.indptr = (_decode(x, arrays) for x in content[1:])
        return matrix
    if kind == "RandomState":
        state = _decode(content, arrays)
        if not 0 <= state[2] <= 624:  # which NumPy does not check
            raise ValueError("the state of the RandomState is none")
        random = np.random.RandomState(0)
        random.set_state(tuple(state))
        return random
    return _decode_model(kind, *content, arrays)


def _decode_datetime(text, fold, zone):
    if isinstance(zone, str):
        zone = ZoneInfo(zone)
    elif zone is not None:
        zone = timezone(timedelta(*zone))
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def _dtype(text):
    if not re.fullmatch(r"[<|][biufMmUS]\d{1,9}(\[\d*[a-zA-Z]+\])?", text):
        raise ValueError(f"it has an unknown type, {text!r}")
    return np.dtype(text)


def _decode_array(name, dtype, transposed, arrays):
    array = arrays.pop(name)
    if dtype == "O":
        items = json.loads(array.tobytes())
        return np.fromiter((_decode(item, {}) for item in items), object, len(items))
    dtype = _dtype(dtype)
    if array.dtype != _STORED.get(dtype.kind, dtype):
        raise ValueError(f"{name} has the type {array.dtype}")
    array = array.view(dtype)
    if dtype.kind in "US":
        if array.shape[-1] != 1:
            raise ValueError(f"{name} has the shape {array.shape}")
        array = array[..., 0]
    return array.T if transposed else array


def _decode_model(kind, params, attributes, arrays):
    cls = _CLASSES[kind]
    for what, found, known in (
        ("parameter", params, cls._get_param_names()),
        ("attribute", attributes, _ATTRIBUTES[cls]),
    ):
        for unknown in found.keys() - set(known):
            raise ValueError(
                f"this version of wals does not know the {what} {unknown} of {kind}: upgrade wals"
            )
    params, attributes = (
        {name: _decode(value, arrays) for name, value in values.items()}
        for values in (params, attributes)
    )
    _check(cls, attributes)
    model = cls(**params)
    vars(model).update(attributes)
    if cls is WALS:
        freeze(model)
    return model


# --------------------------------------------------------------------------------------- soundness


def _check(cls, attributes):
    """Raise an error unless attributes of a class are what they should be, and fit together."""
    sizes = {}
    for name, value in attributes.items():
        expected = _ATTRIBUTES[cls][name]
        if not isinstance(expected, tuple):
            if not isinstance(value, expected):
                raise ValueError(f"{name} is a {type(value).__name__}.")
            continue
        dimensions, dtypes = expected
        if not isinstance(value, np.ndarray) or value.ndim != len(dimensions):
            raise ValueError(f"{name} is not an array of {len(dimensions)} dimensions.")
        if dtypes is not None and value.dtype.str[1:] not in dtypes:
            raise ValueError(f"{name} is an array of {value.dtype}.")
        if any(sizes.setdefault(of, n) != n for of, n in zip(dimensions, value.shape, strict=True)):
            raise ValueError(f"{name} has shape {value.shape}, which does not fit the others.")
    fitted = _FITTED[cls]
    if fitted and fitted[0] in attributes:
        if missing := [name for name in fitted if name not in attributes]:
            raise ValueError(f"{', '.join(missing)} is missing from a fitted {cls.__name__}.")
        (_check_wals if cls is WALS else _check_recommender)(sizes, **attributes)


def _check_wals(sizes, components_, row_factors_, n_features_in_, **_):
    if components_.dtype != row_factors_.dtype:
        raise ValueError("components_ and row_factors_ differ in precision.")
    if n_features_in_ != sizes["m"]:
        raise ValueError(f"components_ has {sizes['m']} columns, not {n_features_in_}.")


def _check_recommender(sizes, interactions_, estimator_, **_):
    shape, X = (sizes["n"], sizes["m"]), interactions_
    if X.shape != shape:
        raise ValueError(f"interactions_ has shape {X.shape}, not {shape}.")
    fitted = estimator_.__sklearn_is_fitted__()
    if not fitted or (len(estimator_.row_factors_), estimator_.n_features_in_) != shape:
        raise ValueError(f"estimator_ is not fitted on a matrix of shape {shape}.")
    data, indices, indptr = parts = X.data, X.indices, X.indptr
    if not (
        [part.ndim for part in parts] == [1, 1, 1]
        and data.dtype == np.float32
        and indices.dtype == indptr.dtype in (np.int32, np.int64)
        and len(indptr) == shape[0] + 1
        and indptr[0] == 0
        and indptr[-1] == len(data) == len(indices)
        and np.all(indptr[:-1] <= indptr[1:])
        # What is mapped is not read. Those who use the indices check them.
        and (is_mapped(indices) or 0 <= indices.min(initial=0) <= indices.max(initial=0) < shape[1])
    ):
        raise ValueError("interactions_ is not a sound csr_array of float32.")
