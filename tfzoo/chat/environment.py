"""jinja2's sandbox as transformers configures it for chat templates, with strings that record their provenance.

Text that a template writes itself is marked as the template's; other strings keep their provenance, or have none.
"""

import datetime
import functools
import json

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

from tfzoo.chat.provenance import OWN, UNKNOWN, Text, generated, joined, own, shown, traced, who


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}, with which templates mark what the model says."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller):
        return generated(caller())


class _Compiler(jinja2.compiler.CodeGenerator):
    """Generates code that marks literals as the template's own and joins texts with `Environment`'s functions."""

    def visit_Const(self, node, frame):
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(f"environment.own({value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node, frame):
        self.write("environment.own(")
        super().visit_TemplateData(node, frame)
        self.write(")")

    def visit_Concat(self, node, frame):
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("environment.concat(map(environment.shown, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")

    def _output_const_repr(self, group):
        return f"environment.own({''.join(group)!r})"

    def _output_child_pre(self, node, frame, finalize):
        if frame.eval_ctx.volatile:
            self.write("(escape if context.eval_ctx.autoescape else environment.shown)(")
        else:
            self.write("escape(" if frame.eval_ctx.autoescape else "environment.shown(")


class _Dict:
    """`dict` without the other attributes of the class."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` without Python's own attributes."""

    def __init__(*args, **kwargs):  # `self` is not a named parameter, so that an attribute can be called self.
        self, *others = args
        attributes = dict(*others, **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name):
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.sandbox.SecurityError(f"the namespace attribute {name} is unsafe")


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Compiles templates that render to `Text`."""

    code_generator_class = _Compiler
    # Functions that compiled templates call.
    concat = staticmethod(joined)  # type: ignore[assignment]
    own = staticmethod(own)
    shown = staticmethod(shown)

    def __init__(self):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # Keeps literals separate.
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        self.filters |= {"tojson": _tojson, "join": _join, "string": shown}
        self.filters = {name: _traced(function) for name, function in self.filters.items()}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def wrap_str_format(self, value):
        safe = super().wrap_str_format(value)
        if safe is None or not isinstance(value.__self__, Text):
            return safe

        def call(form, *args, **kwargs):
            safe = super(Environment, self).wrap_str_format(getattr(str.__str__(form), value.__name__))
            assert safe is not None
            return safe(*args, **kwargs)

        return functools.partial(traced, call, value.__self__)


class Refused(Exception):
    """A template's rejection of a conversation that it does not support."""


def _raise_exception(message):
    raise Refused(message)


def _strftime_now(form):
    written = all(kind == OWN for kind in who(form))
    return Text(datetime.datetime.now().strftime(form), OWN if written else UNKNOWN)


def _tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_eval_context
def _join(context, value, d="", attribute=None):
    if context.volatile or context.autoescape:
        return jinja2.filters.FILTERS["join"](context, value, d, attribute)
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(context.environment, attribute), value)
    between = shown(d)
    return Text(between, who(between)).join(map(shown, value))


def _traced(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return traced(function, *args, **kwargs)

    return call
