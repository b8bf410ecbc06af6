"""Sessions for contributors: ``nox`` lists them with ``-l``, and ``nox -s lint types test`` runs those of a commit."""

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "test"]
CONSTRAINTS = ("-c", "constraints.txt")
FAST = "not slow and not gpu"


@nox.session
def lint(session: nox.Session) -> None:
    """Check format and style."""
    session.install("ruff", *CONSTRAINTS)
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types in strict mode."""
    session.install(".[test]", *CONSTRAINTS)
    session.run("mypy")


@nox.session(python=["3.11", "3.12", "3.13"])
def test(session: nox.Session) -> None:
    """Run the fast tests, or those that the arguments name."""
    session.install(".[test]", *CONSTRAINTS)
    session.run("pytest", "-q", *(session.posargs or ("-m", FAST)), env={"OMP_NUM_THREADS": "1"})


@nox.session
def docs(session: nox.Session) -> None:
    """Compare the documentation with the code, and build the site as strictly as the gate does."""
    session.install(".[test]", *CONSTRAINTS)
    files = ("docs", "docs_examples", "docs_generated", "words", "doctests")
    session.run("pytest", "-q", *(f"tests/test_{name}.py" for name in files))
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-n", "-b", "html", "docs", f"{session.create_tmp()}/site")


@nox.session
def bench(session: nox.Session) -> None:
    """Run a benchmark: ``nox -s bench -- tests/benchmarks/bench_startup.py``."""
    session.install(".[test]", *CONSTRAINTS)
    session.run("python", *(session.posargs or ("tests/benchmarks/bench_startup.py",)))
