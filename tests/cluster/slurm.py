"""A private SLURM on this machine: munged, slurmctld, two virtual nodes, and on request slurmdbd on MariaDB.

Everything lives in one temporary folder, on ports that were free. Every process of it, jobs too, carries the folder in
its environment (the clients of `bin/`, first on PATH, name the private slurm.conf): so it is found, and ended, whole.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

PACKAGES = "slurm-wlm slurmdbd munge mariadb-server"
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mariadb-install-db", "sbatch")
CLIENTS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol", "sinfo", "sacctmgr", "sshare")
PYTHON = Path(sys.executable).parent

CONF = """\
ClusterName=sandglass
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType={storage}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=15
MessageTimeout=20
KillWait=15
MinJobAge=3600
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=2 RealMemory=10000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=2 RealMemory=10000
PartitionName=main Nodes=n[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=urgent Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF
"""
STORAGE = """\
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
AccountingStoragePass={folder}/munge.socket
"""
DBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql}
StorageUser=slurm
StoragePass={password}
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""
SQL = "CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{password}';\nGRANT ALL ON *.* TO slurm@'127.0.0.1';\n"


class Slurm:
    """A running cluster, and what a test asks of it."""

    def __init__(self, folder: Path, accounting: bool) -> None:
        self.folder = folder
        self.accounting = accounting
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MLFLOW_"))},
            "PATH": f"{folder}/bin:{PYTHON}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> None:
        ports = _free_ports(5)
        words = {
            "folder": self.folder,
            "host": socket.gethostname().split(".")[0],
            "user": getpass.getuser(),
            "password": secrets.token_hex(16),
            "storage": "accounting_storage/slurmdbd" if self.accounting else "accounting_storage/none",
            **dict(zip(("ctld", "n1", "n2", "dbd", "sql"), ports, strict=True)),
        }
        (self.folder / "slurm.conf").write_text((CONF + STORAGE * self.accounting).format(**words))
        (self.folder / "state").mkdir()
        (self.folder / "bin").mkdir()
        for name in CLIENTS:  # Snakemake's job step drops SLURM_CONF, so each client brings it along
            client = self.folder / "bin" / name
            client.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {_program(name)} "$@"\n')
            client.chmod(0o755)
        self._start_munge()
        if self.accounting:
            self._start_accounting(words)
        self._daemon("slurmctld", "-D", "-i", "-f", self.folder / "slurm.conf")
        for node in ("n1", "n2"):
            self.start_node(node)
        until(lambda: self("sinfo", "-h", "-N", "-o", "%T").split()[:2] == ["idle", "idle"], 60, "two idle nodes")

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = [f"--{what}-file={self.folder}/munge.{what}" for what in ("key", "pid", "log", "seed")]
        self._daemon("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files)
        until((self.folder / "munge.socket").exists, 20, "munged")

    def _start_accounting(self, words: dict[str, object]) -> None:
        data, init = self.folder / "mariadb", self.folder / "init.sql"
        init.write_text(SQL.format(**words))
        user = f"--user={getpass.getuser()}"
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", user, "--skip-test-db"]
        subprocess.run(install, check=True, capture_output=True)
        listen = [
            f"--port={words['sql']}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            f"--socket={self.folder}/sql.socket",
        ]
        self._daemon("mariadbd", "--no-defaults", f"--datadir={data}", user, f"--init-file={init}", *listen)
        until(lambda: _listens(words["sql"]), 60, "MariaDB")
        conf = self.folder / "slurmdbd.conf"
        conf.touch(0o600)
        conf.write_text(DBD.format(**words))
        self._daemon("slurmdbd", "-D")
        until(lambda: _listens(words["dbd"]), 60, "slurmdbd")
        for thing in ("cluster sandglass", "account lab", f"user {getpass.getuser()} account=lab"):
            self("sacctmgr", "-i", "add", *thing.split())

    def start_node(self, node: str) -> None:
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._daemon("slurmd", "-D", "-N", node, "-f", self.folder / "slurm.conf", name=node)

    def _daemon(self, program: str, *words: object, name: str = "") -> None:
        """In the foreground, and dead when this process is: nothing stays if pytest itself is killed."""
        line = ["setpriv", "--pdeathsig", "KILL", _program(program), *map(str, words)]
        environment = {**self.environment, "SLURM_CONF": f"{self.folder}/slurm.conf", "SLURMD_NODENAME": name}
        with (self.folder / f"{name or program}.out").open("ab") as out:
            self.daemons[name or program] = subprocess.Popen(
                line, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def __call__(self, program: str, *words: str) -> str:
        """What a SLURM command prints."""
        line = [str(self.folder / "bin" / program), *words]
        done = subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(line)}: {done.stderr}"
        return done.stdout

    def said(self) -> str:
        """The controller's own log."""
        return (self.folder / "slurmctld.log").read_text(errors="replace")

    def processes(self, mark: str = "") -> list[psutil.Process]:
        """Every process of this cluster that has `mark` in its environment, command line or (a step daemon) log."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                words = [*process.cmdline(), *(f"{key}={value}" for key, value in process.environ().items())]
                if process.name() == "slurmstepd":  # it overwrites both with its title
                    words += [file.path for file in process.open_files()]
                text = "\n".join(words)
                if str(self.folder) in text and mark in text and process.pid != os.getpid():
                    found.append(process)
        return found

    def fail_node(self, node: str) -> None:
        """The machine dies: its slurmd, its step daemons and everything they run, with no last word from any."""
        stopped: dict[int, psutil.Process] = {}
        while found := [process for process in self._of_node(node) if process.pid not in stopped]:
            _signal(found, signal.SIGSTOP)  # those that watch the others first; what began meanwhile is found next time
            stopped |= {process.pid: process for process in found}
        # Children first: a stopped srun whose parent dies is woken (SIGHUP, SIGCONT) and cancels its step by its last
        # word, which reaches the step of the same name in the restarted job.
        _signal(list(reversed(stopped.values())), signal.SIGKILL)
        self.daemons.pop(node).wait()

    def _of_node(self, node: str) -> list[psutil.Process]:
        """slurmd and its step daemons, then all that runs under them; a step daemon is also its tasks' ancestor."""
        tasks = self.processes(f"SLURMD_NODENAME={node}")
        found = {process.pid: process for process in self.processes(f"slurmd-{node}.log")}
        for task in tasks:
            with contextlib.suppress(psutil.Error):
                found |= {parent.pid: parent for parent in task.parents() if parent.name() == "slurmstepd"}
        return [*found.values(), *(task for task in tasks if task.pid not in found)]

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            self("scancel", "--user", getpass.getuser())
        for name in reversed(self.daemons):
            self.daemons[name].terminate()
        for daemon in self.daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
        _signal(left := self.processes(), signal.SIGKILL)
        psutil.wait_procs(left, timeout=10)


@contextlib.contextmanager
def running(accounting: bool = False) -> Iterator[Slurm]:
    """A cluster for the length of a `with`."""
    if missing := [name for name in PROGRAMS if not _found(name)]:
        raise RuntimeError(
            f"{', '.join(missing)} not found: apt-get install {PACKAGES} "
            '(the cluster tests need them; pytest -m "not cluster" leaves them out)'
        )
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    cluster = Slurm(folder, accounting)
    before = signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # a terminated pytest cleans up like an interrupted
    try:
        cluster.start()
        yield cluster
    except BaseException:
        for log in sorted(folder.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def until(true: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(AssertionError, OSError, ValueError):
            if true():
                return
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come in {seconds:.0f} s")
        time.sleep(0.2)


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _found(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _program(name: str) -> str:
    return str(_found(name))


def _listens(port: object) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(str(port)))) == 0


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
