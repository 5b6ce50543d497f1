{{/* What policy is made of, besides pods and nodes. */}}
{{- define "terway.policyRules" -}}
- apiGroups: [""]
  resources: [namespaces, serviceaccounts]
  verbs: [get, list, watch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch]
- apiGroups: [policy.networking.k8s.io]
  resources: [clusternetworkpolicies, adminnetworkpolicies, baselineadminnetworkpolicies]
  verbs: [get, list, watch]
- apiGroups: [crd.projectcalico.org, projectcalico.org]
  resources: [globalnetworkpolicies, networkpolicies]
  verbs: [get, list, watch]
- apiGroups: [network.alibabacloud.com]
  resources: [globalnetworkpolicies]
  verbs: [get, list, watch]
{{- end }}
