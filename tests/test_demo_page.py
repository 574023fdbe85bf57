"""The page of `kbert.serve --demo` as people use it, in a headless Chromium."""

import json
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from exports import KINDS, write_folders
from server_process import serving, wait_for

from kbert.serving import saved_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
]
HOSTILE = "the [MASK] sat <script>alert(1)</script> <b>on</b> the [MASK]"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder with an export of each kind in version 7."""
    root = tmp_path_factory.mktemp("models")
    for kind, folder in write_folders(tmp_path_factory.mktemp("weights")).items():
        (root / kind).mkdir()
        method = saved_model.load_endpoint(folder, KINDS[kind][3])
        saved_model.save_endpoint(method, root / kind / "7")
    return root


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    lines = [
        f'config {{ name: "{kind}" base_path: "{models / kind}" '
        f"model_version_policy {{ all {{}} }} }}"
        for kind in KINDS
    ]
    path = tmp_path_factory.mktemp("config") / "models.config"
    path.write_text("model_config_list {\n" + "\n".join(lines) + "\n}\n")
    flags = ("backend=tensorflow", "demo", "file_system_poll_wait_seconds=0.2")
    with serving(f"model_config_file={path}", *flags) as server:
        yield server


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path)
    yield browser
    browser.close()


@pytest.fixture
def page(browser, server):
    """The page, in a window of a desktop; nothing else is asked, and nothing fails."""
    browser.look(1280, 900)
    browser.open(f"http://127.0.0.1:{server.rest}/")
    browser.wait("document.querySelectorAll('input[name=model]').length")
    yield browser
    hosts = {address.split("/")[2] for address in browser.requests() if address[:4] == "http"}
    assert hosts == {f"127.0.0.1:{server.rest}"}
    assert {a.split(":")[0] for a in browser.requests()} <= {"http", "data"}
    assert browser.errors() == []


def choose(page, kind):
    page.script(f"document.querySelector('input[value={kind}]').click()")
    assert page.text("#title") == kind


def ask(page, **values):
    """Fills the form in and sends it; what is said then."""
    for name, value in values.items():
        found = f"document.querySelector('textarea[name={name}]')"
        page.script(f"{found}.value = {json.dumps(value)}")
    page.script("document.querySelector('#said').textContent = ''")
    page.script("document.querySelector('#form').requestSubmit()")
    return answered(page)


def answered(page):
    page.wait("""!document.querySelector("#result").hasAttribute("aria-busy") &&
      document.querySelector("#said").innerText + document.querySelector("#error").innerText""")
    assert page.text("#error") == ""
    return page.text("#said")


def rows(page, selector="#shown"):
    """Name -> figure of the tables of an answer."""
    return dict(
        page.script(
            f"[...document.querySelectorAll('{selector} tr')].map((row) => "
            f"[row.cells[0].textContent, row.cells[row.cells.length - 1].textContent])"
        )
    )


def focused(page, what="tagName"):
    return page.script(f"document.activeElement.{what}")


def test_by_keyboard_alone(page, server):
    page.press("Tab")
    assert focused(page, "name") == "model"
    kinds = list(KINDS)
    page.press("ArrowDown", kinds.index("fill_mask"))
    assert page.text("#title") == "fill_mask"
    page.press("Tab")
    assert focused(page) == "TEXTAREA"
    page.type(HOSTILE)
    page.press("Enter")
    said = answered(page)

    expected = server.get("/v1/models/fill_mask:predict", {"instances": [{"text": HOSTILE}]})[1]
    words = [mask[0] for mask in expected["predictions"][0]["words"]]
    assert said == HOSTILE.replace("[MASK]", words[0], 1).replace("[MASK]", words[1], 1)
    assert page.script("[...document.querySelectorAll('#said mark')].map((m) => m.innerText)") == (
        words
    )
    assert page.script("document.querySelectorAll('script, b').length") == 1

    # What the page asked, in a shell.
    found = subprocess.run(shlex.split(page.text("#curl")), capture_output=True, check=True)
    assert json.loads(found.stdout) == expected

    # On to the attention: past the buttons and examples.
    for _ in range(12):
        page.press("Tab")
        if focused(page, "id") == "look":
            break
    page.press("Enter")
    page.wait("document.querySelectorAll('#lines .token').length")
    asked = {"model": "fill_mask", "text": HOSTILE}
    data = server.get("/demo/attention", asked)[1]
    L = len(data["tokens"])
    assert page.script("tokens") == data["tokens"] and data["tokens"].count("[MASK]") == 2
    assert page.text("#look-said") == f"{L} tokens, 2 layers of 3 heads."
    page.press("Tab")
    assert focused(page, "id") == "layer"
    page.press("ArrowDown")
    page.press("Tab")
    page.press("h")
    assert page.text("#status").startswith("Layer 1, head 0:")  # a list takes letters for itself
    page.press("Tab", 3)
    assert page.script("document.activeElement.classList.contains('token')")
    page.press("h", 2)
    page.press("ArrowDown", 3)
    assert page.text("#status").startswith(f"Layer 1, head 2: {data['tokens'][3]} (3) attends to ")
    weights = page.script("Array.from(weights)")
    decoded = json.loads(json.dumps(data))["maps"][1][2]
    found = page.script(f"Array.from(decoded({json.dumps(decoded)}))")
    np.testing.assert_array_equal(weights, found)
    page.press("ArrowRight")
    assert f"{data['tokens'][3]} (3) is attended to by" in page.text("#status")
    page.press("Enter")
    page.press("End")
    assert f"{data['tokens'][3]} (3) is attended to by" in page.text("#status")  # it is kept
    page.press("Escape")
    page.press("v")
    assert page.script("document.querySelector('#lines-view').hidden")
    page.script("document.activeElement.blur()")
    page.press("Tab")
    assert focused(page, "id") == "map"
    page.press("ArrowDown")
    page.press("ArrowRight")
    token = [f"{data['tokens'][i]} ({i})" for i in (1, 1)]
    weight = found[L + 1]
    assert page.text("#status").endswith(f"{token[0]} attends to {token[1]}: {weight:.4f}.")


EXAMPLES = {"classify": 3, "pair": 2, "multilabel": 3, "regress": 2, "entities": 3, "tags": 3}
EXAMPLES |= {"answer": 3, "answer_or_none": 3, "choose": 2, "fill_mask": 3, "next_sentence": 2}
EXAMPLES |= {"embed": 3, "encode": 1}
SIZES = [(1280, 900, False), (360, 740, True)]


@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_an_example_of_each_kind_is_a_click_away(page, width, height, dark):
    page.look(width, height, dark=dark, phone=width < 500)
    for kind, count in EXAMPLES.items():
        choose(page, kind)
        examples = "document.querySelectorAll('#examples button')"
        assert page.script(f"{examples}.length") == count, kind
        page.script(f"{examples}[{count - 1}].click()")
        assert answered(page), kind
        box = "document.querySelector('#said').getBoundingClientRect()"
        assert page.script(f"{box}.top >= 0 && {box}.bottom <= innerHeight"), kind
        page.script("document.querySelector('#look').click()")
        page.wait("document.querySelectorAll('#lines .token').length")
        for view in ("as-lines", "as-map"):
            page.script(f"document.getElementById('{view}').click()")
            assert page.script(OVERFLOW) == [], (kind, view)
        assert page.script(PALE) == [], kind
        page.script("document.getElementById('as-lines').click()")
        unnamed = [
            (role, name)
            for role, name in page.accessible()
            if role in ("button", "radio", "textbox", "combobox", "table", "figure", "application")
            and not name.strip()
        ]
        assert unnamed == [], kind


# What sticks out of the page, or what is cut, but for what can be scrolled.
OVERFLOW = """[...document.querySelectorAll("body *")].filter((node) => {
  const box = node.getBoundingClientRect();
  return box.width && !node.closest(".scroll") && !node.closest(".unseen") &&
    (box.right > document.documentElement.clientWidth + 0.5 || box.left < -0.5);
}).map((node) => node.outerHTML.slice(0, 80)).concat(
  document.documentElement.scrollWidth > document.documentElement.clientWidth ? ["it all"] : [])"""

# Texts with less contrast to what is behind them than WCAG 2.2 asks for (4.5, large ones 3).
PALE = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => numbers(colour).slice(0, 3).map((x) => x / 255)
    .map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if ((numbers(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("body *")].filter((node) => {
    const own = [...node.childNodes].some((x) => x.nodeType === 3 && x.data.trim());
    if (!own || !node.getClientRects().length || node.closest("script, .unseen")) return false;
    const style = getComputedStyle(node), shown = node.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(shown), light(behind(node))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05) < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5);
  }).map((node) => node.outerHTML.slice(0, 80));
})()"""


def test_enter_begins_a_line_on_a_phone(page):
    hint = "document.querySelector('#keys').getClientRects().length"
    assert page.script(hint) == 1
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    page.script("location.reload()")
    page.wait(f"document.querySelectorAll('textarea').length && !{hint}")
    page.script("document.querySelector('textarea').focus()")
    page.type("cat")
    page.press("Enter")
    page.type("dog")
    assert page.script("document.querySelector('textarea').value") == "cat\ndog"
    assert page.script("document.activeElement.hasAttribute('aria-describedby')") is False
    assert page.text("#said") == "" == page.text("#error")
    page.script("document.querySelector('#ask').click()")
    assert answered(page)


def test_answers_are_those_of_the_server(page, server):
    def asked(kind, *instances):
        found = server.get(f"/v1/models/{kind}:predict", {"instances": instances})
        return found[1]["predictions"]

    names = KINDS["pair"][1]["label_names"]
    texts = {"text": "the cat ran", "text_pair": "a dog sat"}
    choose(page, "pair")
    said = ask(page, **texts)
    (row,) = asked("pair", texts)
    assert said == f"{row['label']}, {100 * row['score']:.1f} %"
    figures = [f"{100 * x:.1f} %" for x in row["probabilities"]]
    assert rows(page) == dict(zip(names, figures, strict=True))
    widths = page.script("[...document.querySelectorAll('.bar')].map((b) => b.style.width)")
    shares = [float(width.removesuffix("%")) / 100 for width in widths]
    np.testing.assert_allclose(shares, sorted(row["probabilities"], reverse=True), atol=1e-5)

    choose(page, "multilabel")
    (row,) = asked("multilabel", {"text": texts["text"]})
    labels = [name for name in row["labels"] if name]
    assert ask(page, text=texts["text"]) == (", ".join(labels) or "No label is above 50 %.")

    choose(page, "regress")
    (score,) = asked("regress", texts)
    assert ask(page, **texts) == f"{score:.4f}".replace("-", "\u2212")

    text = "Ünwanted cât \U0001f408 \u2028 dog on cat on . dog"
    choose(page, "entities")
    (row,) = asked("entities", {"text": text})
    assert row["count"] > 1 and ask(page, text=text) == f"{row['count']} found"
    marks = "[...document.querySelectorAll('.text mark')]"
    found = page.script(
        f"{marks}.map((m) => [m.firstChild.data, m.lastChild.textContent, m.className])"
    )
    assert [x[:2] for x in found] == [list(x) for x in zip(row["text"], row["label"], strict=True)]
    assert {tone for _, label, tone in found if label == "X"} <= {"tone0"}
    shown = (
        "[...document.querySelector('.text').childNodes].map((n) => n.firstChild?.data ?? n.data)"
    )
    assert "".join(page.script(shown)) == text

    choose(page, "answer")
    asking = {"question": "the cat?", "context": f"\ufeff{text} {text}"}
    (row,) = asked("answer", asking)
    assert ask(page, **asking) == row["answer"].replace("\u2028", "\n").strip() or row["answer"]
    assert page.script(f"{marks}[0].textContent") == row["answer"] != ""

    choose(page, "choose")
    page.script("document.querySelector('#more').click()")
    choices = ["a cat", "the dog", "", "a mat"]
    page.script(
        f"document.querySelectorAll('[name=choices]').forEach((field, i) => "
        f"{{ field.value = {json.dumps(choices)}[i]; }})"
    )
    choices.remove("")
    (row,) = asked("choose", {"text": "the cat", "choices": choices})
    assert ask(page, text="the cat") == choices[row["choice"]] == row["text"]
    assert set(rows(page)) == set(choices)

    choose(page, "next_sentence")
    (share,) = asked("next_sentence", texts)
    ask(page, **texts)
    assert rows(page)["it follows"] == f"{100 * share:.1f} %"

    choose(page, "embed")
    vectors = np.array(asked("embed", {"text": "the cat"}, {"text": "a dog ran"}))
    cosine = f"{vectors[0] @ vectors[1]:.3f}".replace("-", "\u2212")
    assert ask(page, first="the cat", second="a dog ran") == f"Similarity {cosine}"
    page.script("document.querySelector('#which').selectedIndex = 1")
    page.script("document.querySelector('#look').click()")
    page.wait("tokens.includes('dog')")


def test_versions_change_while_it_is_open(page, server, models):
    choose(page, "tags")
    ask(page, text="the cat")
    assert page.script("document.querySelector('#version-row').hidden")
    shutil.copytree(models / "tags" / "7", models / "tags" / "8")
    wait_for(lambda: "8" in json.dumps(server.get("/v1/models/tags")[1]["model_version_status"]))
    wait_for(lambda: len(server.get("/demo/models")[1]["models"]) == len(KINDS))
    wait_for(lambda: _versions(server, "tags") == [8, 7])
    ask(page, text="the dog")  # and what is served is read again
    page.wait("!document.querySelector('#version-row').hidden")
    assert page.script("document.querySelector('textarea').value") == "the dog"
    page.script("""(() => { const select = document.querySelector("#version");
      select.value = "7"; select.dispatchEvent(new Event("change")); })()""")
    ask(page, text="the mat")
    assert "/v1/models/tags/versions/7:predict" in page.text("#curl")
    shutil.rmtree(models / "tags" / "7")
    wait_for(lambda: _versions(server, "tags") == [8])
    page.script("document.querySelector('#form').requestSubmit()")
    page.wait("document.querySelector('#error').innerText")
    assert page.text("#error") == "Model 'tags' has no version 7."
    page.wait("document.querySelector('#version-row').hidden")
    ask(page, text="the mat")
    assert "/v1/models/tags:predict" in page.text("#curl")
    # The browser itself notes the answer 404, as it should.
    seen = [x for x in page.errors() if "404" in x["text"]]
    assert len(seen) == 1
    page._events.clear()
    page.open(f"http://127.0.0.1:{server.rest}/")


def _versions(server, name):
    models = server.get("/demo/models")[1]["models"]
    return next([v["version"] for v in m["versions"]] for m in models if m["name"] == name)


def test_what_is_wrong_is_said(models, browser):
    flags = ("backend=tensorflow", "demo", "max_request_bytes=20000")
    with serving(f"model_base_path={models / 'classify'}", *flags) as server:
        browser.look(360, 740, phone=True)
        browser.open(f"http://127.0.0.1:{server.rest}/")
        browser.wait("document.querySelectorAll('textarea').length")
        browser.script("document.querySelector('#ask').click()")
        assert browser.text("#error") == "Enter a text in “Text” first."
        assert focused(browser) == "TEXTAREA"
        browser.script("document.activeElement.value = 'x'.repeat(30_000)")
        browser.script("document.querySelector('#ask').click()")
        browser.wait("document.querySelector('#error').innerText.startsWith('The request is')")
        browser.script("document.querySelector('textarea').value = 'cat'")
    browser.script("document.querySelector('#ask').click()")
    browser.wait("document.querySelector('#error').innerText.startsWith('The server does')")
    assert browser.text("#error") == "The server does not respond. Is it still running?"
    assert browser.script(OVERFLOW) == []
