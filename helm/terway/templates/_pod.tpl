{{/* Metadata of a pod. Takes (list root component values configuration container). */}}
{{- define "terway.podMetadata" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
labels:
  {{- include "terway.labels" (list $root $component) | nindent 2 }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  # A changed configuration is a changed pod.
  checksum/config: {{ index . 3 | sha256sum }}
  kubectl.kubernetes.io/default-container: {{ index . 4 }}
  {{- with $values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* What all pods have in common. What makes the pod network can not use it: host network, and the node's names.
     Takes (list root component values). */}}
{{- define "terway.podSpec" -}}
{{- $root := index . 0 -}}
{{- $values := index . 2 -}}
serviceAccountName: {{ include "terway.name" $root }}-{{ index . 1 }}
# Tokens are mounted where they are needed, and for what.
automountServiceAccountToken: false
hostNetwork: true
dnsPolicy: Default
priorityClassName: {{ $values.priorityClassName }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
nodeSelector:
  kubernetes.io/os: linux
  {{- with $values.nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where replicas go: never two on a node, since they share its ports; and over zones. Takes (list root component). */}}
{{- define "terway.spread" -}}
affinity:
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "terway.selector" . | nindent 12 }}
topologySpreadConstraints:
  - topologyKey: topology.kubernetes.io/zone
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "terway.selector" . | nindent 8 }}
{{- end }}

{{/* Of pods that need nothing of the node. Takes whether they write to a folder of the node, which is root's: then they
     are root without any capability. */}}
{{- define "terway.podSecurity" -}}
{{- if . -}}
securityContext:
  runAsUser: 0
  runAsGroup: 0
  seccompProfile: {type: RuntimeDefault}
{{- else -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- end }}

{{/* Of containers. Takes a list of capabilities. */}}
{{- define "terway.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    {{- with . }}
    add: [{{ join ", " . }}]
    {{- end }}
{{- end }}

{{/* Arguments of a service. Takes (list configuration-file sets). */}}
{{- define "terway.args" -}}
args:
  - --config
  - /etc/terway/config/{{ index . 0 }}
  {{- range index . 1 }}
  - --set
  - {{ . | quote }}
  {{- end }}
{{- end }}

{{/* Probes on the health port. A start may take as long as a look at the cloud does. Takes the port. */}}
{{- define "terway.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: {{ . }}}
  periodSeconds: 1
  failureThreshold: 120
livenessProbe:
  httpGet: {path: /livez, port: {{ . }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: {{ . }}}
  periodSeconds: 5
  timeoutSeconds: 3
{{- end }}

{{/* Variables for the API server. */}}
{{- define "terway.apiEnv" -}}
{{- with .Values.kubernetesAPI }}
{{- if .host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Volume with what a client of the API server needs, in the usual place. */}}
{{- define "terway.apiVolume" -}}
- name: api
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600}
      - configMap:
          name: kube-root-ca.crt
          items: [{key: ca.crt, path: ca.crt}]
      - downwardAPI:
          items:
            - path: namespace
              fieldRef: {fieldPath: metadata.namespace}
{{- end }}

{{- define "terway.apiMount" -}}
- name: api
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end }}

{{/* How many may be away when nodes are drained. Takes (list root component values). */}}
{{- define "terway.disruption" }}
{{- $root := index . 0 }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "terway.name" $root }}-{{ index . 1 }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "terway.labels" (list $root (index . 1)) | nindent 4 }}
spec:
  maxUnavailable: {{ (index . 2).maxUnavailable }}
  # A pod that is not ready guards nothing.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "terway.selector" (list $root (index . 1)) | nindent 6 }}
{{- end }}

{{/* What becomes of claims when the release goes. Deleted only if every address has gone back to the cloud before;
     otherwise it must stay known who owns them. */}}
{{- define "terway.whenDeleted" -}}
{{- if and .Values.uninstall.enabled (not .Values.uninstall.force) -}}Delete{{- else -}}Retain{{- end -}}
{{- end }}
