"""``--format TEMPLATE``: Docker's templates, by a table and on the commands."""

from __future__ import annotations

import json

import msgspec
import pytest

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import Daemon, make_id
from vxnet import __version__
from vxnet.cli.template import Row, Template
from vxnet.model.errors import CallerError


class Inner(msgspec.Struct):
    vni: int = 7
    mtu: int | None = None


class Record(msgspec.Struct):
    name: str = "blue"
    data_path_addr: str = "10.0.0.1"
    up: bool = True
    inner: Inner = msgspec.field(default_factory=Inner)
    labels: dict[str, str] = msgspec.field(default_factory=lambda: {"team": "a", "x.y": "z"})
    nets: tuple[str, ...] = ("a", "b")
    ends: tuple[Inner, ...] = (Inner(1), Inner(2))
    none: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "template, text",
    [
        ("{{.Name}}", "blue"),
        ("{{ .name }}", "blue"),
        ("<{{.DataPathAddr}} {{.data_path_addr}}>", "<10.0.0.1 10.0.0.1>"),
        ("{{.Inner.Vni}}", "7"),
        ("{{.Up}} {{.Inner.Mtu}}", "true <nil>"),
        ("{{.Labels.team}}{{.Labels.none}}", "a<no value>"),
        ('{{index .Labels "x.y"}}', "z"),
        ("{{index .Nets 1}}", "b"),
        ("{{.Nets}}", '["a","b"]'),
        ("{{json .Inner}}", '{"vni":7,"mtu":null}'),
        ("{{.Inner | json}}", '{"vni":7,"mtu":null}'),
        ('{{join .Nets ", "}} {{upper .Name}} {{len .Nets}} {{truncate .Name 2}}', "a, b BLUE 2 bl"),
        ("{{range .Ends}}<{{.Vni}} {{$.Name}}>{{end}}", "<1 blue><2 blue>"),
        ("{{range .None}}x{{else}}nothing{{end}}", "nothing"),
        ("{{range .Labels}}{{.}}{{end}}", "az"),
        ("{{if .Up}}up{{else}}down{{end}}", "up"),
        ("{{if .None}}some{{else if .Nets}}nets{{end}}", "nets"),
        ('{{if eq .Name "blue"}}1{{end}}{{if ne .Name "blue"}}2{{end}}{{if not .None}}3{{end}}', "13"),
        ("{{with .Inner}}{{.Vni}}{{end}}", "7"),
        ("a {{- .Name -}} b", "abluebb"[:6]),
        (r"{{.Name}}\t{{.Name}}\n", "blue\tblue\n"),
        ('{{"quoted \\" text"}}', 'quoted " text'),
        ("{{println .Name}}", "blue\n"),
        ("{{/* said nothing */}}.", "."),
    ],
)
def test_what_it_gives(template: str, text: str) -> None:
    assert Template(template).render(Record()) == text


@pytest.mark.parametrize(
    "template, words",
    [
        ("{{.Name", "}}"),
        ("{{if .Name}}", "end"),
        ("{{end}}", "end"),
        ("{{}}", "nothing"),
        ("{{frob .Name}}", "frob"),
        ("{{.Image}}", "there are name, data_path_addr, up, inner, labels, nets, ends and none"),
        ("{{.Name.Foo}}", "Foo"),
        ("{{index .Nets 9}}", "index"),
        ("{{len .Up}}", "len"),
        ("{{truncate .Name}}", "truncate"),
    ],
)
def test_what_is_wrong_is_said(template: str, words: str) -> None:
    with pytest.raises(CallerError, match=r"^--format: ") as caught:
        Template(template).render(Record())
    assert words in str(caught.value)


def test_a_row_has_columns_and_its_record() -> None:
    row = Row({"CONTAINER ID": "12", "CPU %": "3%", "NET I/O": "1B / 2B", "MEM USAGE / LIMIT": "m"}, Record())
    text = Template("{{.ID}} {{.ContainerID}} {{.CPUPerc}} {{.NetIO}} {{.MemUsage}} {{.Name}}").render(row)
    assert text == "12 12 3% 1B / 2B m blue"
    assert json.loads(Template("{{json .}}").render(row))["name"] == "blue"


def test_lists(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("init")
    vxnet_("network", "create", "my-net", "--label", "team=a")
    vxnet_("run", "-d", "--name", "web", "--network", "my-net", "sleep", "9")
    vxnet_("service", "create", "-d", "--name", "app", "true")
    web, h1 = make_id("web")[:12], make_id("h1")[:12]
    for words, text in {
        ("ps", "--format", "{{.Names}} {{.ID}} {{.State}}"): f"web {web} running\n",
        ("ps", "--format", r"table {{.Names}}\t{{.ID}}\t{{.State}}"): (
            f"NAMES     CONTAINER ID   STATE\nweb       {web}   running\n"
        ),
        ("network", "ls", "--format", "{{.Name}}={{.Labels.team}}"): "my-net=a\n",
        ("node", "ls", "--format", "{{.ID}} {{.Hostname}} {{.ManagerStatus}} {{.Self}}"): f"{h1} h1 Leader true\n",
        ("service", "ls", "--format", "{{.Name}} {{.Mode}}"): "app replicated\n",
        ("service", "ps", "app", "--format", "{{.Name}} {{.DesiredState}}"): "app.1 Running\n",
        ("info", "-f", "{{.Name}} {{.Nodes}}"): "h1 1\n",
        ("inspect", "-f", "{{.Spec.Name}} {{.State}}", "web"): "web running\n",
        ("network", "inspect", "-f", "{{range .Network.Subnets}}{{.Prefix}}{{end}}", "my-net"): "10.0.16.0/20\n",
        ("node", "inspect", "-f", "{{.Node.Role}} {{.Role}}", "self"): "manager manager\n",
        ("version", "-f", "{{.Client}} {{.Daemon}}"): f"{__version__} {__version__}\n",
        ("service", "inspect", "-f", "{{.Service.Spec.Name}}", "app"): "app\n",
        ("top", "--format", "{{.PID}}", "web"): "71\n",
    }.items():
        result = vxnet_(*words)
        assert (result.exit_code, result.stdout, result.stderr) == (0, text, ""), words


def test_inspect_goes_on_after_what_is_not_there(vxnet_: Vxnet) -> None:
    vxnet_("run", "-d", "--name", "web", "sleep", "9")
    result = vxnet_("inspect", "-f", "{{.State}}", "nobody", "web")
    assert (result.exit_code, result.stdout) == (1, "running\n")
    assert "nobody" in result.stderr


@pytest.mark.parametrize("words", [("ps", "--format", "{{.Image}}"), ("inspect", "-f", "{{.Image}}", "web")])
def test_a_field_that_is_not_there(vxnet_: Vxnet, words: tuple[str, ...]) -> None:
    vxnet_("run", "-d", "--name", "web", "sleep", "9")
    result = vxnet_(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("vxnet: --format: there is no .Image; there are ")


def test_a_torn_template_is_refused_before_anything_is_asked(vxnet_: Vxnet) -> None:
    result = vxnet_("ps", "--format", "{{.Names")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "vxnet: invalid value for '--format': a {{ has no }} behind it: '{{.Names'; see `vxnet ps --help`\n"
    )
