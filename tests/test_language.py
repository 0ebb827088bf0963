"""The docstring rule: a public docstring opens with an imperative verb, in at most 15 words and one full sentence."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("proto", "harvester", "activation_server", "trainer", "evaluator", "deploy")
MOST_WORDS = 15

# The verbs a docstring of ours may open with. A list catches what a grammar cannot: "State of the window." opens with a noun.
# A verb that is missing here is added here.
VERBS = set(
    """
    Abandon Abort Accept Accumulate Acknowledge Adapt Add Adjust Admit Advance Allocate Allow Announce Answer Append Apply Arrange
    Ask Assemble Assert Assign Attach Average Await Back Balance Begin Bind Block Borrow Bound Branch Bring Broadcast Broaden Build
    Bundle Cache Calculate Calibrate Call Cancel Cap Carry Cast Catch Chain Change Check Choose Cite Claim Clamp Clean Clear Clip
    Close Collect Combine Commit Compact Compare Compile Complain Complete Compose Compress Compute Concatenate Configure Connect Consume
    Continue Convert Copy Correct Count Cover Create Cut Deal Decide Declare Decode Decompress Decorate Decrease Defer Define
    Delay Delete Deliver Demand Derive Describe Deserialize Detach Detect Determine Differentiate Discard Disconnect Display
    Distribute Divide Do Download Drain Draw Drive Drop Emit Enable Encode End Ensure Enter Enumerate Erase Escape Estimate
    Evaluate Evict Exchange Execute Exit Expand Explain Export Expose Extend Extract Factor Fail Feed Fetch Fill Fine-tune Filter Find
    Finish Fit Fix Flag Flatten Float Flush Fold Follow Forget Format Forward Free Freeze Fuse Gather Generate Get Give Go Grant Group
    Grow Guard Guess Halve Hand Handle Harvest Hash Have Hide Hold Honor Identify Ignore Implement Import Include Increase Index
    Infer Inherit Initialize Insert Inspect Install Interleave Interpolate Interpret Interrupt Intersect Invalidate Invert Invoke
    Isolate Iterate Join Judge Keep Kill Know Label Launch Lay Lead Learn Leave Lend Let Lift Limit Link List Listen Load Locate
    Lock Log Look Lower Maintain Make Manage Map Mark Mask Match Materialize Mean Measure Meet Merge Migrate Mill Minimize Mirror
    Mix Model Monitor Move Multiply Name Negotiate Nest Normalize Note Notice Notify Observe Offer Offset Omit Open Optimize Order
    Overlap Override Overwrite Own Pack Package Pad Parse Partition Pass Patch Pause Penalize Perform Permit Permute Persist Pick
    Pin Place Plan Plot Point Poll Pool Pop Postpone Precompute Predict Prefetch Prepare Preserve Prevent Print Probe Process
    Produce Project Promise Propose Protect Prove Provide Prune Publish Pull Push Put Quantize Queue Quiet Quit Quote Raise Rank
    Reach Read Reassign Rebuild Recalculate Receive Recognize Recompute Reconnect Reconstruct Record Recover Recycle Reduce Refer Refine
    Refuse Register Reject Rejoin Relate Relay Release Reload Remember Remove Rename Render Renormalize Reorder Repeat Replace
    Replay Replicate Reply Report Represent Request Require Rerun Resample Rescale Reserve Reset Reshape Resolve Restart Restore
    Restrict Resume Retain Retire Retrieve Retry Return Reuse Reverse Revive Rewind Rewrite Roll Rotate Round Route Run Sample
    Satisfy Save Say Scale Scan Scatter Schedule Score Scrape Seal Search Seed Seek Select Send Separate Serialize Serve Set Shard
    Share Shift Shorten Show Shrink Shuffle Shut Sign Signal Silence Simulate Size Skip Slice Smooth Solve Sort Spawn Specify
    Splice Split Spread Squeeze Stack Stage Stamp Start State Steer Step Stitch Stop Store Stream Strip Submit Subscribe
    Substitute Subtract Sum Summarize Supervise Supply Support Suppress Swap Sweep Switch Synchronize Tag Take Tally Teach Tell
    Terminate Test Throw Tile Time Tokenize Tolerate Total Trace Track Train Transfer Transform Translate Transpose Traverse Treat
    Trigger Trim Truncate Try Tune Turn Type Undo Unfold Unify Unite Unload Unpack Unregister Unroll Unscale Update Upgrade Upload
    Use Validate Verify Visit Wait Wake Walk Warm Warn Watch Weigh Weight Widen Wire Wrap Write Yield Zero
    """.split()
)


def broken(first_line: str) -> list[str]:
    """The parts of the rule that a first line breaks."""
    words = first_line.split()
    if not words:
        return ["empty first line"]
    rules = []
    if len(words) > MOST_WORDS:
        rules.append(f"more than {MOST_WORDS} words")
    if not first_line.endswith("."):
        rules.append("no full stop")
    opening = re.sub(r"\W+$", "", words[0])
    if opening not in VERBS or words[1:2] == ["of"]:
        rules.append("no imperative verb")
    return rules


def public_docstrings(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Line, name and docstring of a module and of its public classes, functions and methods that have one."""

    def visit(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> Iterator[tuple[int, str, str]]:
        if (docstring := ast.get_docstring(node)) is not None:
            yield node.body[0].lineno, name, docstring
        if isinstance(node, ast.Module | ast.ClassDef):
            for child in node.body:
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
                    yield from visit(child, f"{name}.{child.name}".lstrip("."))

    yield from visit(tree, "")


def violations(root: Path) -> list[tuple[str, list[str], str]]:
    """Each broken docstring of the rooms: its room, the parts of the rule that it breaks, and ``file:line name: first line``."""
    found = []
    for room in ROOMS:
        for file in sorted((root / room).rglob("*.py")):
            for line, name, docstring in public_docstrings(ast.parse(file.read_text(encoding="utf-8"))):
                first = docstring.splitlines()[0] if docstring else ""
                if rules := broken(first):
                    found.append((room, rules, f"{file.relative_to(root)}:{line} {name or 'module'}: {first}"))
    return found


def report(found: list[tuple[str, list[str], str]]) -> str:
    """Counts by room and by part of the rule, then a line for each docstring."""
    rooms = Counter(room for room, _, _ in found)
    rules = Counter(rule for _, broken_rules, _ in found for rule in broken_rules)
    lines = [f"{len(found)} public docstrings break the rule (CONTRIBUTING.md, Language):"]
    lines += [f"{count:6} in {room}" for room, count in rooms.most_common()]
    lines += [f"{count:6} {rule}" for rule, count in rules.most_common()]
    lines += [f"{place}  [{', '.join(broken_rules)}]" for _, broken_rules, place in found]
    return "\n".join(lines)


def test_public_docstrings_open_with_a_verb():
    found = violations(ROOT)
    if found:
        pytest.fail(report(found), pytrace=False)


def test_modules_have_a_docstring():
    bare = [
        str(file.relative_to(ROOT))
        for room in ROOMS
        for file in sorted((ROOT / room).rglob("*.py"))
        if (tree := ast.parse(file.read_text(encoding="utf-8"))).body and ast.get_docstring(tree) is None
    ]
    assert not bare, "modules without a docstring:\n" + "\n".join(bare)


@pytest.mark.parametrize(
    "first_line, rules",
    [
        ("Return the next batch.", []),
        ("Retry, then raise the last error.", []),
        ("", ["empty first line"]),
        ("Return the next batch", ["no full stop"]),
        ("Of the shuffle.", ["no imperative verb"]),
        ("Returns the next batch.", ["no imperative verb"]),
        ("State of the window.", ["no imperative verb"]),
        ("The next batch", ["no full stop", "no imperative verb"]),
        ("Return " + "very " * 14 + "much.", ["more than 15 words"]),
    ],
)
def test_the_rule_finds_what_breaks_it(first_line, rules):
    assert broken(first_line) == rules


def test_private_and_nested_names_are_exempt(tmp_path):
    source = '''
class _Hidden:
    """Of no concern."""
    def shown(self):
        """Of no concern."""

def public():
    """Of concern."""
    def nested():
        """Of no concern."""

class Public:
    """Of concern."""
    def _hidden(self):
        """Of no concern."""
    @property
    def shown(self):
        """Of concern."""
'''
    (tmp_path / "proto").mkdir()
    (tmp_path / "proto" / "sample.py").write_text(source)
    assert [place.split(" ")[1] for _, _, place in violations(tmp_path)] == ["public:", "Public:", "Public.shown:"]
