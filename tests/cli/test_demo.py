"""The demo is a run of `distill`."""

from subdistill_hf.cli.demo import OPTIONS, parse
from subdistill_hf.cli.distill import make_parser


def test_the_demo_is_a_run_of_distill_with_options_that_exist():
    parser = make_parser(all_arguments=True)
    task, config = parser.parse_args_into_dataclasses(OPTIONS.split(), look_for_args_file=False)
    assert task.compare == ["scratch", "kd"]
    assert config.method == "subdistill"


def test_further_options_are_added_and_count_where_both_are_given():
    given = parse(["--max_steps", "5", "--compare", "kd", "--classes", "a", "b", "--use_cpu"])
    assert (given["max_steps"], given["compare"], given["classes"]) == (5, ["kd"], ["a", "b"])
    assert (given["use_cpu"], given["output_dir"]) == (True, "demo-student")
