"""The fields of KubeRay's and Kubernetes' resources that the files in cluster/ may use; an unknown field is an error.

Written from the API references: https://ray-project.github.io/kuberay/reference/api/ (ray.io/v1, KubeRay 1.5) and
https://kubernetes.io/docs/reference/kubernetes-api/ (v1, batch/v1).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")] | int
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Count = Annotated[int, Field(ge=0)]
# Of a label: Kubernetes and Ray share the syntax.
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]


class Strict(BaseModel):
    """No field that is not written down, no value that would have to be converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: Name | None = None
    generateName: str | None = None
    labels: dict[str, LabelValue] = {}


class KeyRef(Strict):
    name: str
    key: str
    optional: bool = False


class ValueFrom(Strict):
    secretKeyRef: KeyRef


class EnvVar(Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
    value: str | None = None
    valueFrom: ValueFrom | None = None


class SecretRef(Strict):
    name: str
    optional: bool = False


class EnvFrom(Strict):
    secretRef: SecretRef


class Port(Strict):
    containerPort: Annotated[int, Field(gt=0, lt=65536)]
    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,15}$")]


class Mount(Strict):
    name: Name
    mountPath: str


class Resources(Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]


class Container(Strict):
    name: Name
    image: str
    command: list[str] = []
    args: list[str] = []
    ports: list[Port] = []
    env: list[EnvVar] = []
    envFrom: list[EnvFrom] = []
    resources: Resources
    volumeMounts: list[Mount] = []


class ClaimRef(Strict):
    claimName: Name


class Volume(Strict):
    name: Name
    persistentVolumeClaim: ClaimRef


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSpec(Strict):
    restartPolicy: Literal["Always", "OnFailure", "Never"]
    nodeSelector: dict[str, LabelValue] = {}
    tolerations: list[Toleration] = []
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume] = []


class PodTemplate(Strict):
    metadata: Metadata | None = None
    spec: PodSpec


class AuthOptions(Strict):
    mode: Literal["token", "disabled"]


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: Count
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] = "Default"


class HeadGroup(Strict):
    rayStartParams: dict[str, str] = {}
    labels: dict[str, LabelValue] = {}
    resources: dict[str, str] = {}
    template: PodTemplate


class WorkerGroup(Strict):
    groupName: Name
    replicas: Count | None = None
    minReplicas: Count
    maxReplicas: Count
    idleTimeoutSeconds: Count | None = None
    rayStartParams: dict[str, str] = {}
    labels: dict[str, LabelValue] = {}
    resources: dict[str, str] = {}
    template: PodTemplate


class RayClusterSpec(Strict):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool
    autoscalerOptions: AutoscalerOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: Annotated[list[WorkerGroup], Field(min_length=1)]


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


class SubmitterConfig(Strict):
    backoffLimit: Count


class RayJobSpec(Strict):
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    submitterConfig: SubmitterConfig | None = None
    backoffLimit: Count
    activeDeadlineSeconds: Annotated[int, Field(gt=0)] | None = None
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: Count
    entrypoint: str
    runtimeEnvYAML: str | None = None
    metadata: dict[str, str] = {}
    rayClusterSpec: RayClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class PodCondition(Strict):
    type: str
    status: Literal["True", "False", "Unknown"]


class ExitCodes(Strict):
    containerName: Name
    operator: Literal["In", "NotIn"]
    values: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1, max_length=255)]


class FailureRule(Strict):
    action: Literal["FailJob", "FailIndex", "Ignore", "Count"]
    onExitCodes: ExitCodes | None = None
    onPodConditions: list[PodCondition] | None = None


class FailurePolicy(Strict):
    rules: Annotated[list[FailureRule], Field(min_length=1, max_length=20)]


class JobSpec(Strict):
    backoffLimit: Count
    podFailurePolicy: FailurePolicy
    template: PodTemplate


class Job(Strict):
    apiVersion: Literal["batch/v1"]
    kind: Literal["Job"]
    metadata: Metadata
    spec: JobSpec


class ClaimSpec(Strict):
    accessModes: list[Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]]
    storageClassName: str | None = None
    resources: dict[Literal["requests"], dict[Literal["storage"], Quantity]]


class Claim(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


KINDS: dict[str, type[Strict]] = {
    "RayCluster": RayCluster,
    "RayJob": RayJob,
    "Job": Job,
    "PersistentVolumeClaim": Claim,
}


def check(document: dict[str, Any]) -> Any:
    """Return a document as its model; raises pydantic's ValidationError for anything that is not written down."""
    return KINDS[document["kind"]].model_validate(document)
