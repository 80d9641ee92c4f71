"""A Python kernel as clients of the code interpreter expect it: ipykernel, and some formats of its own.

Data frames come as `e2b/data`, matplotlib figures as `e2b/chart`, lists and dictionaries as JSON. Whatever fails to be
described is simply not described: a cell never fails because of its display.
"""

import base64
import json
import os
import sys
import types
import warnings

from IPython.core.formatters import BaseFormatter
from ipykernel.kernelapp import IPKernelApp
from traitlets import ObjectName, Unicode
from traitlets.config import Config


class Formatter(BaseFormatter):
    """Knows one class of its own by its module's name, so that nothing is imported for it. Not registered as IPython's
    formatters are: matplotlib's support takes figures out of all of them when it starts."""

    _return_type = dict
    known = ()

    def __call__(self, value):
        module, name = self.known
        known = getattr(sys.modules.get(module), name, None)
        if known is not None and isinstance(value, known):
            return self.describe(value)
        return super().__call__(value)


class DataFormatter(Formatter):
    format_type = Unicode("e2b/data")
    print_method = ObjectName("_repr_e2b_data_")
    known = ("pandas", "DataFrame")

    def describe(self, frame):
        return data_of_frame(frame)


class ChartFormatter(Formatter):
    format_type = Unicode("e2b/chart")
    print_method = ObjectName("_repr_e2b_chart_")
    known = ("matplotlib.figure", "Figure")

    def describe(self, figure):
        return chart_of_figure(figure)


def plain(value, default=None):
    """What JSON can hold of a value: no NaN, no numpy, keys that are strings. None where it can't."""
    try:
        import orjson

        options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
        return json.loads(orjson.dumps(value, default=default, option=options))
    except Exception:
        return None


def cell(value):
    """A value of a data frame that JSON does not know."""
    import pandas

    if value is pandas.NaT or value is pandas.NA:
        return None
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def data_of_frame(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        columns = frame.to_dict(orient="list")
    # orjson does not take tuples as keys.
    return plain({str(name): values for name, values in columns.items()}, cell)


def chart_of_figure(figure):
    try:
        from e2b_charts import chart_figure_to_dict

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chart = chart_figure_to_dict(figure)
    except Exception:
        return {}
    return plain(chart or {}, str) or {}


def describe(formatters):
    for kind in (DataFormatter, ChartFormatter):
        formatter = kind(parent=formatters)
        formatters.formatters[formatter.format_type] = formatter
    for builtin in (list, dict):
        formatters.formatters["application/json"].for_type(builtin, plain)


def show_pictures():
    """`image.show()` shows in the cell, and so does saving to a file: there is no screen."""
    from PIL import Image, ImageShow

    save = Image.Image.save
    if getattr(save, "shows", False):
        return
    ImageShow._viewers[:] = [ImageShow.IPythonViewer()]

    def saving(self, fp, *args, **kwargs):
        save(self, fp, *args, **kwargs)
        # Only figures that a cell saves: libraries save to files in memory.
        if isinstance(fp, str):
            from IPython.display import display

            display(self)

    saving.shows = True
    saving.__doc__ = save.__doc__
    Image.Image.save = saving


def prepare(encoded):
    """The interpreter's silent request before a run: variables, directory, randomness."""
    wanted = json.loads(base64.b64decode(encoded))
    for name in wanted["unset"]:
        os.environ.pop(name, None)
    os.environ.update(wanted["set"])
    if wanted["cwd"] is not None:
        try:
            os.chdir(wanted["cwd"])
        except OSError:
            pass
    if wanted["seed"] is not None:
        import zygote

        zygote.reseed()


class App(IPKernelApp):
    def log_connection_info(self):
        """Nobody is to connect but the interpreter."""


def run(connection_file, listening):
    config = Config()
    config.InteractiveShell.colors = "NoColor"
    config.PlainTextFormatter.max_seq_length = 0
    # All contexts would share the history file, and one would lock it.
    config.HistoryManager.enabled = False
    app = App.instance(connection_file=connection_file, config=config)
    app.initialize(["-f", connection_file])
    describe(app.shell.display_formatter)
    if "PIL.Image" in sys.modules:
        show_pictures()
    if "matplotlib_inline.backend_inline" in sys.modules:
        # Imported before there was a shell.
        app.shell.enable_matplotlib("inline")
    hook = types.ModuleType("_interpreter")
    hook.prepare = prepare
    sys.modules["_interpreter"] = hook
    listening()
    app.start()
