// Asks another engine what NetworkPolicies mean.
//
// Reads one question a line from standard input: the documents of a cluster, and connections. Writes
// one answer a line: a letter for each connection, 'y' or 'n', or why there is none. The engine knows
// nothing of nodes, of several names for a port, or of what the API server fills in; the last is done
// here, as the API server does it.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
)

type question struct {
	Documents []json.RawMessage `json:"documents"`
	Probes    []probe           `json:"probes"`
}

type probe struct {
	From     end    `json:"from"`
	To       end    `json:"to"`
	Protocol string `json:"protocol"`
	Port     int    `json:"port"`
}

type end struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Address   string `json:"address"`
}

type answer struct {
	Open  string `json:"open"`
	Error string `json:"error"`
}

type cluster struct {
	pods       map[string]*core.Pod
	namespaces map[string]*core.Namespace
	policies   []*networking.NetworkPolicy
}

func read(documents []json.RawMessage) (*cluster, error) {
	known := &cluster{
		pods:       map[string]*core.Pod{},
		namespaces: map[string]*core.Namespace{},
	}
	for _, document := range documents {
		var head struct {
			Kind string `json:"kind"`
		}
		if err := json.Unmarshal(document, &head); err != nil {
			return nil, err
		}
		switch head.Kind {
		case "Pod":
			pod := &core.Pod{}
			if err := json.Unmarshal(document, pod); err != nil {
				return nil, err
			}
			known.pods[pod.Namespace+"/"+pod.Name] = pod
		case "Namespace":
			namespace := &core.Namespace{}
			if err := json.Unmarshal(document, namespace); err != nil {
				return nil, err
			}
			known.namespaces[namespace.Name] = namespace
		case "NetworkPolicy":
			policy := &networking.NetworkPolicy{}
			if err := json.Unmarshal(document, policy); err != nil {
				return nil, err
			}
			if len(policy.Spec.PolicyTypes) == 0 {
				policy.Spec.PolicyTypes = []networking.PolicyType{networking.PolicyTypeIngress}
				if len(policy.Spec.Egress) > 0 {
					policy.Spec.PolicyTypes = append(policy.Spec.PolicyTypes, networking.PolicyTypeEgress)
				}
			}
			known.policies = append(known.policies, policy)
		}
	}
	return known, nil
}

func (c *cluster) peer(e end) *matcher.TrafficPeer {
	peer := &matcher.TrafficPeer{IP: e.Address}
	if pod := c.pods[e.Namespace+"/"+e.Name]; pod != nil {
		peer.Internal = &matcher.InternalPeer{PodLabels: pod.Labels, Namespace: pod.Namespace}
		if namespace := c.namespaces[pod.Namespace]; namespace != nil {
			peer.Internal.NamespaceLabels = namespace.Labels
		}
	}
	return peer
}

// The name that the receiving pod gives a port.
func (c *cluster) portName(e end, protocol core.Protocol, port int) string {
	pod := c.pods[e.Namespace+"/"+e.Name]
	if pod == nil {
		return ""
	}
	containers := append([]core.Container{}, pod.Spec.Containers...)
	for _, container := range pod.Spec.InitContainers {
		if container.RestartPolicy != nil && *container.RestartPolicy == core.ContainerRestartPolicyAlways {
			containers = append(containers, container)
		}
	}
	for _, container := range containers {
		for _, declared := range container.Ports {
			spoken := declared.Protocol
			if spoken == "" {
				spoken = core.ProtocolTCP
			}
			if spoken == protocol && int(declared.ContainerPort) == port {
				return declared.Name
			}
		}
	}
	return ""
}

func judge(line []byte) (given answer) {
	// The engine panics on what it can not read.
	defer func() {
		if reason := recover(); reason != nil {
			given = answer{Error: fmt.Sprint(reason)}
		}
	}()
	var asked question
	if err := json.Unmarshal(line, &asked); err != nil {
		return answer{Error: err.Error()}
	}
	known, err := read(asked.Documents)
	if err != nil {
		return answer{Error: err.Error()}
	}
	engine := matcher.BuildNetworkPolicies(false, known.policies)
	open := make([]byte, 0, len(asked.Probes))
	for _, p := range asked.Probes {
		protocol := core.Protocol(p.Protocol)
		traffic := &matcher.Traffic{
			Source:           known.peer(p.From),
			Destination:      known.peer(p.To),
			ResolvedPort:     p.Port,
			ResolvedPortName: known.portName(p.To, protocol, p.Port),
			Protocol:         protocol,
		}
		if engine.IsTrafficAllowed(traffic).IsAllowed() {
			open = append(open, 'y')
		} else {
			open = append(open, 'n')
		}
	}
	return answer{Open: string(open)}
}

func main() {
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	out := json.NewEncoder(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			if err := out.Encode(judge(line)); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		if err != nil {
			return
		}
	}
}
