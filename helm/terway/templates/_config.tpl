{{/* TOML that all services share. Takes (list root health-port admin-port). */}}
{{- define "terway.serviceConfig" -}}
{{- $telemetry := (index . 0).Values.telemetry -}}
[tls]
ca = "/etc/terway/tls/ca.crt"
cert = "/etc/terway/tls/tls.crt"
key = "/etc/terway/tls/tls.key"

[service.health]
listen = "0.0.0.0:{{ index . 1 }}"

[service.admin]
listen = "127.0.0.1:{{ index . 2 }}"

[service.telemetry]
log_format = {{ $telemetry.logFormat | toJson }}
log_filter = {{ $telemetry.logFilter | toJson }}
sample_ratio = {{ $telemetry.sampleRatio | float64 }}
{{- with $telemetry.otlpEndpoint }}
otlp_endpoint = {{ . | toJson }}
{{- end }}
{{- end }}

{{- define "terway.gatewayConfig" -}}
[listen]
grpc = "0.0.0.0:7201"

[cloud]
region = {{ .Values.cluster.region | toJson }}
endpoint = {{ .Values.gateway.ecsEndpoint | toJson }}
vpc_endpoint = {{ .Values.gateway.vpcEndpoint | toJson }}

[credentials]
{{- if eq .Values.credentials.source "secret" }}
dir = "/var/alibaba-addon-secret"
secret = {{ .Values.credentials.existingSecret | default "alibaba-addon-secret" | toJson }}
{{- else if eq .Values.credentials.source "token" }}
token_config = "/var/addon/token-config"
secret = {{ .Values.credentials.tokenSecret | toJson }}
{{- else if eq .Values.credentials.source "ram-role" }}
ram_role = {{ .Values.credentials.ramRole | default "auto" | toJson }}
{{- else if .Values.credentials.rrsa.roleArn }}
oidc = { role_arn = {{ .Values.credentials.rrsa.roleArn | toJson }}, provider_arn = {{ .Values.credentials.rrsa.oidcProviderArn | toJson }}, token_file = "/var/run/secrets/terway/rrsa/token" }
{{- else }}
# Role, provider and token file come from ack-pod-identity-webhook, as ALIBABA_CLOUD_… variables.
oidc = {}
{{- end }}

[rate_limits]
# Each replica has the same share.
share_permille = {{ div (int .Values.gateway.quotaSharePermille) (int .Values.gateway.replicas) }}

{{ include "terway.serviceConfig" (list . 7202 7203) }}
{{- end }}

{{- define "terway.ipamConfig" -}}
[listen]
grpc = "0.0.0.0:7301"
# listen.advertise is a variable of the pod: its node's address.

[store]
{{- with .Values.ipam.store }}
{{- if eq .kind "redb" }}
kind = "redb"
path = "/var/lib/terway/ipam.redb"
{{- else if eq .kind "etcd" }}
kind = "etcd"
endpoints = {{ .etcd.endpoints | toJson }}
insecure = {{ .etcd.insecure }}
prefix = {{ .prefix | toJson }}
{{- else }}
kind = "etcd"
# store.endpoints is a variable of the pod: the addresses of the members' Services.
prefix = {{ .prefix | toJson }}
{{- end }}
{{- end }}

[cloud]
# A variable of the pod (TERWAY_CLOUD__GATEWAYS) says where the gateway is.

[cluster]
id = {{ .Values.cluster.id | toJson }}
{{- with .Values.cluster.authority }}
authority = {{ . | toJson }}
{{- end }}
eni_conf = "/etc/eni/eni_conf"
shard_prefix_len = {{ int .Values.ipam.shardPrefixLength }}
{{- range .Values.ipam.exclusiveVSwitches }}

[vswitch.{{ . | toJson }}]
mode = "exclusive"
{{- end }}

{{ include "terway.serviceConfig" (list . 7302 7303) }}
{{- end }}

{{- define "terway.agentConfig" -}}
[node]
# node.name is a variable of the pod.
cluster = {{ .Values.cluster.id | toJson }}
eni_conf = "/etc/eni/eni_conf"
state_dir = "/var/lib/terway"
socket = "/run/terway/agent.sock"
# Settings of the node, where a container that is not privileged can write them.
proc_sys = "/host/proc/sys"

[cluster]
source = "kubernetes"

[control]
# control.endpoint is a variable of the pod. Where this release says whether nodes serve or leave:
phase = {{ printf "%s/%s-phase" .Release.Namespace (include "terway.name" .) | toJson }}

[cni]
# What is written to `dir` when the node can serve, and removed first when it leaves.
source = "/etc/eni"
dir = "/host/etc/cni/net.d"

[device_plugin]
enabled = {{ .Values.controlplane.wholeENIs }}
dir = "/var/lib/kubelet/device-plugins"

[ipam]
# A variable of the pod (TERWAY_IPAM__REPLICAS) says where they are; they tell each other's addresses.

[pool]
batch = {{ int .Values.node.pool.batch }}
reuse_after_ms = {{ int64 .Values.node.pool.reuseAfterMs }}

[policy]
enabled = {{ eq (include "terway.policy" .) "true" }}
socket = "/run/terway/policy.sock"
owner_socket = "/run/terway/policy-owner.sock"

{{ include "terway.serviceConfig" (list . 7402 7403) }}
{{- end }}

{{- define "terway.policyConfig" -}}
mode = "agent"

[node]
# node.name is a variable of the pod.
cluster = {{ .Values.cluster.id | toJson }}
state_dir = "/var/lib/terway"
socket = "/run/terway/policy.sock"
{{- if not .Values.relay.enabled }}

[cluster]
source = "kubernetes"
{{- end }}

[control]
# control.endpoint is a variable of the pod.
phase = {{ printf "%s/%s-phase" .Release.Namespace (include "terway.name" .) | toJson }}

[policy]
{{- if eq (toString .Values.policy.enabled) "true" }}
enabled = true
{{- end }}
registered = {{ .Values.cluster.registered }}
eni_config = "/etc/eni"
veth_prefixes = [{{ .Values.eniConfig.cni.vethPrefix | toJson }}]
anti_spoof = {{ .Values.policy.antiSpoof }}
owner_socket = "/run/terway/policy-owner.sock"

[revoke]
established = {{ .Values.policy.established | toJson }}

{{ include "terway.serviceConfig" (list . 7405 7406) }}
{{- end }}

{{- define "terway.relayConfig" -}}
mode = "relay"

[node]
# node.name is a variable of the pod.
cluster = {{ .Values.cluster.id | toJson }}
state_dir = "/tmp"

[cluster]
source = "kubernetes"

[relay]
listen = "0.0.0.0:7401"
agents_max = {{ int .Values.relay.agentsMax }}

[felix_health]
enabled = false

{{ include "terway.serviceConfig" (list . 7408 7409) }}
{{- end }}

{{- define "terway.controlplaneConfig" -}}
{{- $name := include "terway.name" . -}}
mode = "serve"

[listen]
grpc = "0.0.0.0:7501"

[cluster]
id = {{ .Values.cluster.id | toJson }}
authority = {{ .Values.cluster.authority | default .Values.cluster.id | toJson }}
registered = {{ .Values.cluster.registered }}
namespace = {{ .Release.Namespace | toJson }}
release = {{ .Release.Name | toJson }}
phase = {{ printf "%s/%s-phase" .Release.Namespace $name | toJson }}

[leader]
lease = {{ printf "%s-controlplane" $name | toJson }}
lease_ms = {{ mul 1000 (int .Values.controlplane.leaderElection.leaseSeconds) }}
renew_ms = {{ mul 1000 (int .Values.controlplane.leaderElection.renewSeconds) }}

[certificates]
{{- if eq .Values.certificates.source "existing" }}
issue = false
{{- else }}
issue = true
# self: this release makes and renews its authority in the Secret. secret: somebody else does.
authority = {{ ternary "self" "secret" (eq .Values.certificates.source "controlplane") | toJson }}
secret = {{ printf "%s-ca" $name | toJson }}
trust = {{ printf "%s-trust" $name | toJson }}
audience = {{ include "terway.audience" . | toJson }}
lifetime_ms = {{ mul 3600000 (int .Values.certificates.lifetimeHours) }}

# Who gets which name: service accounts of this namespace.
[certificates.accounts]
node = {{ printf "%s-node" $name | toJson }}
{{- if eq .Values.certificates.source "controlplane" }}
gateway = {{ printf "%s-gateway" $name | toJson }}
ipam = {{ printf "%s-ipam" $name | toJson }}
{{- if .Values.relay.enabled }}
relay = {{ printf "%s-relay" $name | toJson }}
{{- end }}
{{- if include "terway.ownEtcd" . }}
etcd = {{ printf "%s-etcd" $name | toJson }}
{{- end }}
{{- end }}
{{- end }}

[nodes]
whole_enis = {{ .Values.controlplane.wholeENIs }}
instances = {{ printf "%s-instances" $name | toJson }}
{{- with .Values.controlplane.startupTaint }}
startup_taint = {{ . | toJson }}
{{- end }}

[ipam]
# A variable of the pod (TERWAY_IPAM__REPLICAS) says where they are.

[uninstall]
force = {{ .Values.uninstall.force }}
timeout_ms = {{ mul 1000 (int .Values.uninstall.timeoutSeconds) }}

{{ include "terway.serviceConfig" (list . 7502 7503) }}
{{- end }}

{{/* Terway's keys, made from values. */}}
{{- define "terway.eniConfigData" -}}
{{- $values := .Values.eniConfig -}}
{{- $conf := dict
      "version" "1"
      "region_id" .Values.cluster.region
      "vswitches" $values.vswitches
      "security_groups" $values.securityGroups
      "eni_tags" $values.tags
      "ip_stack" $values.ipStack
      "vswitch_selection_policy" $values.vswitchSelectionPolicy
      "min_pool_size" (int $values.minPoolSize)
      "max_pool_size" (int $values.maxPoolSize) -}}
{{- with $values.serviceCIDR }}{{ $_ := set $conf "service_cidr" . }}{{ end -}}
{{- $ours := dict "type" "terway" "eniip_virtual_type" "veth" "veth_prefix" $values.cni.vethPrefix "mtu" (int $values.cni.mtu) -}}
{{- $_ := set $ours "agent_socket" (printf "%s/agent.sock" .Values.node.paths.run) -}}
{{- $_ := set $ours "del_journal" (printf "%s/del-journal" .Values.node.paths.state) -}}
{{- $plugins := list $ours -}}
{{- if $values.cni.portmap }}{{ $plugins = append $plugins (dict "type" "portmap" "capabilities" (dict "portMappings" true)) }}{{ end -}}
{{- if $values.cni.bandwidth }}{{ $plugins = append $plugins (dict "type" "bandwidth" "capabilities" (dict "bandwidth" true)) }}{{ end -}}
eni_conf: |
  {{- $conf | toPrettyJson | nindent 2 }}
10-terway.conflist: |
  {{- dict "cniVersion" $values.cni.version "name" "terway" "plugins" $plugins | toPrettyJson | nindent 2 }}
disable_network_policy: {{ ternary "false" "true" (eq (include "terway.policy" .) "true") | quote }}
{{- end }}

{{/* What pods that read eni-config must be replaced for. An existing ConfigMap is read as it is now; `helm template`
     does not see it. */}}
{{- define "terway.eniConfigSum" -}}
{{- if .Values.eniConfig.existingConfigMap -}}
{{- (lookup "v1" "ConfigMap" .Release.Namespace .Values.eniConfig.existingConfigMap).data | toJson -}}
{{- else -}}
{{- include "terway.eniConfigData" . -}}
{{- end -}}
{{- end }}
