"""One line of migrations, up and down, agreeing with the tables, and never half done."""

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from kasmina.domain.errors import KasminaError, SchemaMismatch, StoreUnavailable
from kasmina.infra import engine, migrate, schema
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.testing import caught, epochs


@pytest.fixture
def connection(url):
    writer = engine.locate(url).writer(engine.Durability.FULL, create=True)
    with writer.begin() as connection:
        yield connection
    writer.dispose()


def made(connection):
    return dict(connection.execute(text("SELECT name, sql FROM sqlite_master")).all())


def test_there_is_one_newest_revision_and_it_is_the_codes():
    script = ScriptDirectory.from_config(migrate.config())
    assert script.get_heads() == [schema.REVISION]
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert revisions == sorted(revisions, reverse=True)


def test_up_down_and_up_again_is_the_same(connection):
    config = migrate.config(connection)
    command.upgrade(config, "head")
    first = made(connection)
    command.downgrade(config, "base")
    assert "events" not in made(connection)
    command.upgrade(config, "head")
    assert made(connection) == first


def test_a_database_with_events_is_not_taken_down(recorded, connection):
    with pytest.raises(RuntimeError, match="holds recorded events"):
        command.downgrade(migrate.config(connection), "base")


def test_the_tables_in_code_are_those_in_the_database(connection):
    command.upgrade(migrate.config(connection), "head")
    options = {"version_table": schema.VERSION_TABLE, "compare_server_default": True}
    context = MigrationContext.configure(connection, opts=options)
    assert compare_metadata(context, schema.metadata) == []
    assert "STRICT" in made(connection)["events"]


def test_triggers_and_autoincrement_are_there(connection):
    command.upgrade(migrate.config(connection), "head")
    assert set(schema.TRIGGERS) <= made(connection).keys()
    assert "AUTOINCREMENT" in made(connection)["events"]


def test_the_index_of_beginnings_holds_first_events_alone(connection):
    command.upgrade(migrate.config(connection), "head")
    assert made(connection)["events_beginnings"].endswith("WHERE sequence = 1")


def test_every_revision_says_which_release_brought_it(recorded, sql):
    script = ScriptDirectory.from_config(migrate.config())
    revisions = {revision.revision for revision in script.walk_revisions()}
    found = dict(sql("SELECT revision, release FROM kasmina_releases"))
    assert found.keys() == revisions
    assert all(release[0].isdigit() for release in found.values())


def test_upgrading_creates_and_then_leaves_alone(path, url):
    assert migrate.upgrade(url) == schema.REVISION
    assert migrate.current(url) == schema.REVISION
    before = path.read_bytes()
    assert migrate.upgrade(url) == schema.REVISION
    assert path.read_bytes() == before


def test_the_present_revision_is_asked_without_creating_anything(tmp_path, path, url):
    caught(StoreUnavailable, migrate.current, url)
    assert list(tmp_path.iterdir()) == []
    path.touch()
    assert migrate.current(url) is None
    assert path.stat().st_size == 0


@pytest.mark.parametrize("table", schema.TRIGGERS)
def test_a_migration_that_loses_a_guard_is_undone(url, connection, table, monkeypatch):
    command.upgrade(migrate.config(connection), "head")
    connection.execute(text(f"DROP TRIGGER {table}"))
    error = caught(SchemaMismatch, migrate._require_guards, connection, engine.locate(url))
    assert error.found == f"a schema without {table}"


def test_a_migration_that_loses_autoincrement_is_undone(url, connection):
    for name in ("events", *schema.TRIGGERS):
        connection.execute(text(f"CREATE TABLE {name} (position INTEGER PRIMARY KEY)"))
    error = caught(SchemaMismatch, migrate._require_guards, connection, engine.locate(url))
    assert "AUTOINCREMENT" in error.found


def test_a_migration_that_fails_leaves_nothing(url, monkeypatch):
    def lost(connection, database):
        raise SchemaMismatch(database.url, found="nothing good", expected="0001", mend="")

    monkeypatch.setattr(migrate, "_require_guards", lost)
    caught(SchemaMismatch, migrate.upgrade, url)
    assert migrate.current(url) is None


class TestANewerDatabase:
    @pytest.fixture
    def newer(self, recorded, sql):
        sql("UPDATE kasmina_schema SET version_num = '0003'")
        sql("INSERT INTO kasmina_releases VALUES ('0003', '0.9.0')")
        return recorded

    @pytest.mark.parametrize("access", Access)
    def test_says_which_release_to_install(self, newer, access):
        error = caught(SchemaMismatch, open_store, newer, access=access)
        assert (error.found, error.expected) == ("the newer schema 0003", schema.REVISION)
        assert error.mend == "install kasmina>=0.9.0"

    def test_is_not_migrated(self, newer):
        caught(SchemaMismatch, migrate.upgrade, newer)
        assert migrate.current(newer) == "0003"

    def test_without_a_release_still_says_what_to_do(self, newer, sql):
        sql("DELETE FROM kasmina_releases")
        error = caught(SchemaMismatch, open_store, newer)
        assert error.mend == "install a newer kasmina"


def test_an_older_database_is_for_readers_to_report_and_for_writers_to_upgrade(
    recorded, monkeypatch
):
    present = schema.REVISION
    monkeypatch.setattr(schema, "REVISION", "0003")
    error = caught(SchemaMismatch, open_store, recorded, access=Access.READ)
    assert (error.found, error.expected) == (f"the older schema {present}", "0003")
    assert "kasmina db upgrade" in error.mend


class TestFindingTheMigrations:
    def test_a_wheel_carries_its_own(self, tmp_path, monkeypatch):
        package = tmp_path / "kasmina"
        (package / "_migrations").mkdir(parents=True)
        (package / "_migrations" / "env.py").touch()
        monkeypatch.setattr(migrate, "_PACKAGE", package)
        assert migrate.scripts() == package / "_migrations"

    def test_an_install_without_them_says_so(self, tmp_path, monkeypatch):
        monkeypatch.setattr(migrate, "_PACKAGE", tmp_path / "kasmina")
        assert "without its migrations" in str(caught(KasminaError, migrate.scripts))

    def test_a_percent_sign_in_the_path_is_no_trap(self, tmp_path, monkeypatch, url):
        copy = tmp_path / "100%here" / "_migrations"
        copy.parent.mkdir()
        copy.symlink_to(migrate.scripts())
        monkeypatch.setattr(migrate, "_PACKAGE", copy.parent)
        assert migrate.upgrade(url) == schema.REVISION


def test_a_new_revision_can_be_written_from_the_template(tmp_path, monkeypatch):
    copy = tmp_path / "_migrations"
    (copy / "versions").mkdir(parents=True)
    for name in ("env.py", "script.py.mako", "versions/0001_events.py"):
        (copy / name).write_text((migrate.scripts() / name).read_text())
    monkeypatch.setattr(migrate, "_PACKAGE", tmp_path)
    command.revision(migrate.config(), message="more columns", rev_id="0002")
    (written,) = (copy / "versions").glob("0002_*.py")
    compile(written.read_text(), written, "exec")
    assert 'down_revision = "0001"' in written.read_text().replace("'", '"')


def test_opening_a_present_database_does_not_migrate(recorded, monkeypatch):
    monkeypatch.setattr(migrate, "upgrade", None)
    with open_store(recorded) as store:
        assert store.append("other", epochs(1), expected=0)
