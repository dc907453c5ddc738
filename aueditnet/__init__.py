"""AUEditNet: set the intensity of 12 facial action units while the person stays the same.

The names below are loaded when they are first used, so that `import aueditnet` costs nothing."""
__version__ = "0.1.0"

_HOME = {
    "InputError": "files.errors", "AUS": "facs", "PRESETS": "facs", "parse": "facs", "DISFA": "data", "align_face": "align",
    "Generator": "stylegan2", "AUNet": "recognition", "IRSE50": "recognition", "Encoder": "inversion",
    "Inverter": "inversion", "AUEditNet": "editor", "EditLoss": "losses", "LossConfig": "losses", "Learner": "training",
    "TrainConfig": "training", "train": "runs.train", "evaluate": "evaluation", "FaceModel": "pipeline",
    "Pipeline": "pipeline", "Photo": "photo", "Explorer": "explore"}
__all__ = ["__version__", *_HOME]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value   # the next use does not come here
    return value


def __dir__():
    return sorted({*globals(), *_HOME})
