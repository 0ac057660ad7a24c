"""The plain way to read a snapshot, for comparison: unpickle it with torch, running the source that it embeds."""

import pickle
import types


class EasyDict(dict):
    pass


class Unpickler(pickle.Unpickler):
    """Stands in for NVlabs' `dnnlib` and `torch_utils.persistence`. For files that the tests made themselves."""

    def __init__(self, file):
        super().__init__(file)
        self.modules = {}

    def find_class(self, module, name):
        if name == "EasyDict":
            return EasyDict
        if name == "_reconstruct_persistent_obj":
            return self.reconstruct
        return super().find_class(module, name)

    def reconstruct(self, meta):
        source = meta["module_src"]
        if source not in self.modules:
            self.modules[source] = types.ModuleType("embedded")
            exec(source, self.modules[source].__dict__)
        cls = getattr(self.modules[source], meta["class_name"])
        instance = cls.__new__(cls)
        getattr(instance, "__setstate__", instance.__dict__.update)(meta["state"])
        return instance


def load(path):
    """The snapshot's dictionary, its `ema` a torch module of the embedded class."""
    with open(path, "rb") as file:
        return Unpickler(file).load()


def main(source, target):
    from safetensors.torch import save_file

    save_file(load(source)["ema"].state_dict(), target)


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
