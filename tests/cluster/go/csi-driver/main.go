// A storage driver for tests: each volume is one file with an XFS file system, mounted over a loop device.
//
// It really fills up and it really grows while mounted, which is what the tests need and what a folder on the host
// can not do. XFS and not ext4, because growing a mounted ext4 needs a capability that sandboxes do not grant.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func main() {
	var d driver
	var endpoint, registrationSocket string
	flag.StringVar(&d.name, "name", "", "name of the driver")
	flag.StringVar(&d.node, "node", "", "name of this node; none for the controller")
	flag.StringVar(&d.volumes, "volumes", "", "folder of the volumes' files, with a folder per node")
	flag.StringVar(&endpoint, "endpoint", "", "socket to serve on")
	flag.StringVar(&registrationSocket, "registration", "", "socket on which the kubelet finds the driver")
	flag.Parse()
	d.endpoint = endpoint

	if registrationSocket != "" {
		registrar := grpc.NewServer()
		registration.RegisterRegistrationServer(registrar, &d)
		go serve(registrar, registrationSocket)
	}
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, &d)
	csi.RegisterControllerServer(server, &d)
	csi.RegisterNodeServer(server, &d)
	serve(server, endpoint)
}

// Serves on a socket; a file that an earlier life left there is replaced.
func serve(server *grpc.Server, socket string) {
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("serving on", socket)
	log.Fatal(server.Serve(listener))
}
