{{/* What everything begins with. */}}
{{- define "terway.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "terway" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-terway" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Labels of every object. Takes (list root component). */}}
{{- define "terway.labels" -}}
{{- $root := index . 0 -}}
{{ include "terway.selector" . }}
app.kubernetes.io/part-of: terway-mesh
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels by which pods are selected; they never change. Takes (list root component). */}}
{{- define "terway.selector" -}}
app.kubernetes.io/name: terway
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Name of the DaemonSet. */}}
{{- define "terway.nodeName" -}}
{{- if .Values.node.terwayNames -}}terway-eniip{{- else -}}{{ include "terway.name" . }}-node{{- end -}}
{{- end }}

{{/* Image of a component. Takes (list root component override). */}}
{{- define "terway.image" -}}
{{- $root := index . 0 -}}
{{- $image := $root.Values.image -}}
{{- if index . 2 -}}
{{- index . 2 -}}
{{- else -}}
{{- with $image.registry }}{{ . }}/{{ end -}}
{{- $image.repository }}/{{ index . 1 }}:{{ $image.tag | default $root.Chart.AppVersion -}}
{{- end -}}
{{- end }}

{{/* The variable by which kubelet tells the address of a Service of ours to a container: names can not be resolved
     before there is a pod network. Takes (list root service). */}}
{{- define "terway.serviceHost" -}}
{{- printf "$(%s_%s_SERVICE_HOST)" (include "terway.name" (index . 0)) (index . 1) | upper | replace "-" "_" -}}
{{- end }}

{{/* ConfigMap with Terway's keys. */}}
{{- define "terway.eniConfig" -}}
{{- .Values.eniConfig.existingConfigMap | default (printf "%s-eni-config" (include "terway.name" .)) -}}
{{- end }}

{{/* "true" where the DaemonSet has a policy-agent. */}}
{{- define "terway.policy" -}}
{{- $wanted := toString .Values.policy.enabled -}}
{{- if or (eq $wanted "true") (and (eq $wanted "auto") (not .Values.cluster.registered)) -}}true{{- end -}}
{{- end }}

{{/* "true" where the central services and the DaemonSet fetch their certificates from the control plane. */}}
{{- define "terway.issued" -}}
{{- if eq .Values.certificates.source "controlplane" -}}true{{- end -}}
{{- end }}

{{/* "true" where etcd of this release runs. */}}
{{- define "terway.ownEtcd" -}}
{{- if eq .Values.ipam.store.kind "etcd-own" -}}true{{- end -}}
{{- end }}

{{/* Who may have a certificate from the control plane: audience of the tokens. */}}
{{- define "terway.audience" -}}
{{ include "terway.name" . }}-controlplane
{{- end }}
