package main

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (d *driver) NodeGetCapabilities(
	context.Context, *csi.NodeGetCapabilitiesRequest,
) (*csi.NodeGetCapabilitiesResponse, error) {
	rpc := func(kind csi.NodeServiceCapability_RPC_Type) *csi.NodeServiceCapability {
		return &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{
			Rpc: &csi.NodeServiceCapability_RPC{Type: kind}}}
	}
	return &csi.NodeGetCapabilitiesResponse{Capabilities: []*csi.NodeServiceCapability{
		rpc(csi.NodeServiceCapability_RPC_EXPAND_VOLUME),
		rpc(csi.NodeServiceCapability_RPC_GET_VOLUME_STATS),
	}}, nil
}

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{
		NodeId:             d.node,
		AccessibleTopology: &csi.Topology{Segments: map[string]string{d.topologyKey(): d.node}},
	}, nil
}

func (d *driver) NodePublishVolume(
	_ context.Context, request *csi.NodePublishVolumeRequest,
) (*csi.NodePublishVolumeResponse, error) {
	path, err := d.file(request.GetVolumeId())
	if err != nil {
		return nil, err
	}
	target := request.GetTargetPath()
	if err := os.MkdirAll(target, 0o750); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if device(target) != "" {
		return &csi.NodePublishVolumeResponse{}, nil
	}
	options := "loop"
	if request.GetReadonly() {
		options += ",ro"
	}
	if err := run("mount", "-t", "xfs", "-o", options, path, target); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (d *driver) NodeUnpublishVolume(
	_ context.Context, request *csi.NodeUnpublishVolumeRequest,
) (*csi.NodeUnpublishVolumeResponse, error) {
	target := request.GetTargetPath()
	if device(target) != "" {
		if err := run("umount", target); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
	if err := os.Remove(target); err != nil && !os.IsNotExist(err) {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (d *driver) NodeExpandVolume(
	_ context.Context, request *csi.NodeExpandVolumeRequest,
) (*csi.NodeExpandVolumeResponse, error) {
	target := request.GetVolumePath()
	loop := device(target)
	if loop == "" {
		return nil, status.Errorf(codes.FailedPrecondition, "%s is not mounted", target)
	}
	// The loop device learns of the longer file first, then the file system of the larger device.
	if err := run("losetup", "-c", loop); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := run("xfs_growfs", target); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: request.GetCapacityRange().GetRequiredBytes()}, nil
}

func (d *driver) NodeGetVolumeStats(
	_ context.Context, request *csi.NodeGetVolumeStatsRequest,
) (*csi.NodeGetVolumeStatsResponse, error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(request.GetVolumePath(), &stat); err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	block := stat.Bsize
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{
			Unit: csi.VolumeUsage_BYTES, Total: int64(stat.Blocks) * block,
			Available: int64(stat.Bavail) * block, Used: int64(stat.Blocks-stat.Bfree) * block,
		},
		{
			Unit: csi.VolumeUsage_INODES, Total: int64(stat.Files),
			Available: int64(stat.Ffree), Used: int64(stat.Files - stat.Ffree),
		},
	}}, nil
}

// The loop device that is mounted at a path; empty when none is.
func device(target string) string {
	output, err := exec.Command("findmnt", "--noheadings", "--mountpoint", target, "--output", "SOURCE").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(output))
}
