"""Hostile chat templates: they try to leave the sandbox, never end, or fill the memory."""

from __future__ import annotations

import sys
from functools import cache

import pytest

from qwencli.errors import InputError
from qwencli.text.chat import template_process
from qwencli.text.chat.template import ChatTemplate

USER = {"role": "user", "content": "hi"}
THE = "the model's chat template "
LINUX = sys.platform == "linux"


@pytest.fixture(autouse=True)
def _enough_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """More processor time than users' templates have, so that what fails for another reason does so on a slow machine too."""
    monkeypatch.setattr(template_process, "CPU_SECONDS", 30)


@pytest.fixture
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less processor time than users' templates have, so that endless ones take less."""
    monkeypatch.setattr(template_process, "CPU_SECONDS", 0.2)


@cache
def one_of(*sources: str) -> ChatTemplate:
    """Renders the `n`th of some templates, with one process for all of them."""
    return ChatTemplate(
        "".join(f"{{% {'el' if i else ''}if n == {i} %}}{source}" for i, source in enumerate(sources))
        + "{% endif %}"
    )


# Attempts to leave the sandbox

ESCAPES = {
    "CVE-2016-10745": "{{ '{0.__class__.__mro__}'.format('') }}",
    "CVE-2019-8341": "{{ ''.__class__.__mro__[1].__subclasses__()[40]('FILE', 'w').write('x') }}",
    "CVE-2019-10906": "{{ '{x.__class__.__mro__}'.format_map({'x': ''}) }}",
    "CVE-2024-34359": "{% for c in ().__class__.__base__.__subclasses__() %}{% if 'warning' in c.__name__ %}"
    "{{ c()._module.__builtins__['__import__']('os').popen('touch FILE').read() }}{% endif %}{% endfor %}",
    "CVE-2024-56201": "{% extends \"x' + __import__('os').system('touch FILE') + '\" %}",
    "CVE-2024-56326": "{% set f = '{0.__class__.__mro__}'.format %}{{ f('') }}",
    "CVE-2024-56326 through a macro": "{% macro m(f) %}{{ f(cycler) }}{% endmacro %}{{ m('{0.__init__.__globals__}'.format) }}",
    "CVE-2024-56326 through a namespace": "{% set ns = namespace(f='{a.__init__.__globals__}'.format_map) %}{{ ns.f({'a': cycler}) }}",
    "CVE-2025-27516": "{{ ('{0.__init__.__globals__}' | attr('format'))(cycler) }}",
    "CVE-2025-27516 through map": "{{ (['{0.__init__.__globals__}'] | map('attr', 'format') | first)(cycler) }}",
    "format by map's attribute": "{{ (['{0.__init__.__globals__}'] | map(attribute='format') | first)(cycler) }}",
    "format of markup": "{{ ('{0.__class__.__mro__}' | safe).format('') }}",
    "map's attribute": "{{ [''] | map(attribute='__class__.__mro__') | list }}",
    "sort's attribute": "{{ [''] | sort(attribute='__class__.__mro__') }}",
    "sum's attribute": "{{ [''] | sum(attribute='__class__') }}",
    "groupby's attribute": "{{ [''] | groupby('__class__.__mro__') }}",
    "messages": "{{ messages.__class__.__base__ }}",
    "refusals": "{{ raise_exception.__globals__.x }}",
    "an item": "{{ ''['__class__'].mro() }}",
    "an item in disguise": r"{{ ''['\x5f\x5fclass\x5f\x5f'].x }}",
    "an attribute put together": "{{ ('' | attr('__cla' ~ 'ss__')).x }}",
    "a type's mro": "{{ dict.mro() }}",
    "a type's subclasses": "{{ dict.__subclasses__() }}",
    "pickle": "{{ ''.__reduce_ex__(2) }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('touch FILE') }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('touch FILE') }}",
    "joiner": "{{ joiner().__init__.__globals__ }}",
    "namespace": "{{ namespace.__init__.__globals__ }}",
    "context": "{{ self._TemplateReference__context.environment }}",
    "template": "{{ self.__init__.__globals__ }}",
    "undefined": "{{ nothing.__init__.__globals__ }}",
    "generator": "{% set g = messages | map('upper') %}{{ g.gi_frame.f_globals }}",
    "code": "{{ strftime_now.__code__.co_consts }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "caller": "{% macro m() %}{{ caller._func.__code__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "bound method": "{{ ''.encode().fromhex.__self__.__subclasses__() }}",
    "mutable method": "{{ [].append.__self__ }}",
    "include": "{% include '/etc/passwd' %}",
    "include if there": "{% include ['a', 'b'] ignore missing %}",
    "import": "{% import 'os' as os %}",
    "from": "{% from 'os' import system %}",
    "extends": "{% extends '/etc/passwd' %}",
    "namespace's call": "{% set ns = namespace() %}{% set ns.__call__ = 1 %}",
    "namespace's class": "{{ namespace(__class__=1) }}",
    "namespace's names": "{{ namespace({'_Namespace__attrs': 1}) }}",
}


PRIVATE = [
    "lipsum['__globals__']",
    "lipsum | attr('__globals__')",
    "raise_exception.__globals__",
    "strftime_now.__closure__",
    "dict.__doc__",
    "self._TemplateReference__context",
    "namespace().__init__",
    "(messages | map('upper')).gi_code",
    "'%s' | format(cycler.__init__)",
    "'{0[__class__]}'.format('')",
    "__builtins__",
    "environment",
    "'a'.maketrans.__self__",
    "[''] | join(attribute='__class__')",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_templates_do_not_leave_the_sandbox(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "escaped"
    template = one_of(*(source.replace("FILE", file.as_posix()) for source in ESCAPES.values()))
    what = r"(SecurityError: access to attribute '\w+' of '\w+' object is unsafe|TypeError: no loader for this environment)"
    with pytest.raises(InputError, match=THE + "fails on this conversation: " + what) as error:
        template.render([USER], n=list(ESCAPES).index(name))
    assert "\n" not in str(error.value)
    assert not file.exists()


@pytest.mark.parametrize("expression", PRIVATE)
def test_what_is_private_is_undefined(expression: str) -> None:
    assert one_of(*("{{ " + e + " }}" for e in PRIVATE)).render([USER], n=PRIVATE.index(expression)) == ""


# Endless templates, and those that fill the memory

NS = "{% set ns = namespace(x=[1], y=[1], s='aaaaaaaaaaaaaaaaaaaa') %}"


def again(times: int, *steps: str) -> str:
    return (
        NS
        + f"{{% for i in range({times}) %}}"
        + "".join(f"{{% set ns.{step} %}}" for step in steps)
        + "{% endfor %}"
    )


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "a power": "{% set n = 10**9 %}{{ (3**n) % 7 }}",
    "a power of constants": "{{ (2**(10**9)) % 7 }}",
    "comparison of nested lists": again(60, "x = [ns.x, ns.x]", "y = [ns.y, ns.y]") + "{{ ns.x == ns.y }}",
    "a source of sums": "{{ 1" + "+1" * 100_000 + " }}",
    "a source of blocks": "".join(f"{{% block a{i} %}}{{% endblock %}}" for i in range(30_000)),
}
LARGE = {
    "repeat": "{{ 'a' * 10**10 }}",
    "repeat a list": "{{ ([0] * 10**9) | length }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "center": "{{ 'a'.center(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "expandtabs": r"{{ '\t\t\t'.expandtabs(2**30) }}",
    "percent": "{{ '%0999999999d' % 1 }}",
    "format": "{{ '{:>999999999}'.format(1) }}",
    "format's width": "{{ '{:{}}'.format(1, 999999999) }}",
    "format filter": "{{ '%999999999s' | format(1) }}",
    "replace": again(99, "s = ns.s.replace('a', ns.s)"),
    "json's indent": "{{ {'a': [1]} | tojson(indent=10**9) }}",
    "indent filter": r"{{ 'a\nb' | indent(10**10) }}",
    "center filter": "{{ 'a' | center(10**10) }}",
    "an answer too long": "{{ 'a' * (2**25 + n) }}",
    "batch": "{{ range(9) | batch(10**9, 'x') | list }}",
}
EITHER = {
    "join": again(99, "s = ns.s.join([ns.s, ns.s, ns.s])"),
    "concatenation": again(99, "s = ns.s ~ ns.s"),
    "list doubled": again(99, "x = ns.x + ns.x"),
    "nested lists": again(60, "x = [ns.x, ns.x]") + "{{ ns.x }}",
    "nested lists as JSON": again(60, "x = [ns.x, ns.x]") + "{{ ns.x | tojson }}",
    "output": "{% for a in range(99999) %}{% for b in range(99999) %}"
    + "x" * 1000
    + "{% endfor %}{% endfor %}",
    "wordwrap": "{{ ('a ' * 10**6) | wordwrap(1, wrapstring='x' * 10**6) }}",
    "slice": "{{ range(9) | slice(10**9) | list }}",
    "lipsum": "{{ lipsum(10**9) }}",
    "format of time": "{{ strftime_now('%c' * 10**8) }}",
    "refusal": "{{ raise_exception('a' * 10**9) }}",
}
WRONG = {
    "macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "loop that calls itself": "{% for a in [[1]] recursive %}{{ loop([a]) }}{% endfor %}",
    "deep list": again(9999, "x = [ns.x]") + "{{ ns.x }}",
    "deep list as JSON": again(9999, "x = [ns.x]") + "{{ ns.x | tojson }}",
    "range": "{{ range(10**9) | list }}",
}
TIME, MEMORY = THE + "took too long$", THE + "takes too much memory$"
EXPECTED = {
    name: fate
    for group, fate in (
        (ENDLESS, TIME),
        (LARGE, MEMORY if LINUX else f"{MEMORY}|{TIME}"),
        (EITHER, f"{MEMORY}|{TIME}"),
        (WRONG, THE + "fails on this conversation: (Recursion|Overflow)Error"),
    )
    for name in group
}
SURVIVED = LARGE | WRONG


@pytest.mark.usefixtures("little_time")
@pytest.mark.parametrize("name", ENDLESS | EITHER)
def test_templates_that_take_too_much(name: str) -> None:
    with pytest.raises(InputError, match=EXPECTED[name]):
        ChatTemplate((ENDLESS | EITHER)[name]).render([USER])


@pytest.mark.parametrize("name", SURVIVED)
def test_templates_that_ask_for_too_much_at_once(name: str) -> None:
    with pytest.raises(InputError, match=EXPECTED[name]):
        one_of(*SURVIVED.values()).render([USER], n=list(SURVIVED).index(name))


@pytest.mark.usefixtures("little_time")
@pytest.mark.parametrize(
    "name", ["loops", "macros", "repeat", "replace", "nested lists", "macro that calls itself"]
)
def test_the_next_conversation_is_served(name: str) -> None:
    template = ChatTemplate(
        "{% if messages %}" + (ENDLESS | EITHER | SURVIVED)[name] + "{% else %}fine{% endif %}"
    )
    for _ in range(2):
        with pytest.raises(InputError, match=EXPECTED[name]):
            template.render([USER])
        assert template.render([]) == "fine"


@pytest.mark.usefixtures("little_time")
def test_deep_values_that_are_compared() -> None:
    """Too deep a recursion in Python is an error or a crash, depending on its version."""
    with pytest.raises(InputError, match=THE):
        ChatTemplate(again(50_000, "x = [ns.x]", "y = [ns.y]") + "{{ ns.x == ns.y }}").render([USER])


def test_a_refusal_is_one_short_line() -> None:
    with pytest.raises(InputError) as error:
        ChatTemplate("{{ raise_exception('a\nb' * 9999) }}").render([USER])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 2000
