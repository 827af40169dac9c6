// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestKit
import Testing
import USB

@testable import HostUSB

/// Files of the kernel, with test folders for sysfs and procfs.
struct SystemFilesTests {
    private let folder: TemporaryFolder
    private var root: String { folder.path }

    init() throws { folder = try TemporaryFolder() }

    private func write(_ text: String, to path: String) throws {
        let url = URL(fileURLWithPath: root + "/" + path)
        try FileManager.default.createDirectory(
            at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
        try Data(text.utf8).write(to: url)
    }

    private func link(_ target: String, at path: String) throws {
        let url = URL(fileURLWithPath: root + "/" + path)
        try FileManager.default.createDirectory(
            at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
        try FileManager.default.createSymbolicLink(
            atPath: url.path, withDestinationPath: target)
    }

    @Test func `the model name is manufacturer and product`() throws {
        try write("QEMU\n", to: "1-2/manufacturer")
        try write("USB HARDDRIVE\n", to: "1-2/product")
        try write("only product\n", to: "1-3/product")
        #expect(SystemFiles.modelName(of: "1-2", devices: root) == "QEMU USB HARDDRIVE")
        #expect(SystemFiles.modelName(of: "1-3", devices: root) == "only product")
        #expect(SystemFiles.modelName(of: "1-4", devices: root) == nil)
    }

    @Test func `two lanes of SuperSpeedPlus are SuperSpeedPlus`() throws {
        try write("20000\n", to: "2-1/speed")
        try write("unknown\n", to: "2-2/speed")
        #expect(SystemFiles.speed(of: "2-1", devices: root) == .superSpeedPlus)
        #expect(SystemFiles.speed(of: "2-2", devices: root) == nil)
        #expect(SystemFiles.speed(of: "2-3", devices: root) == nil)
        #expect(LibUSBDevice.speed(5) == .superSpeedPlus)
        #expect(LibUSBDevice.speed(6) == .superSpeedPlus)
        #expect(LibUSBDevice.speed(0) == nil)
        #expect(LibUSBDevice.speed(7) == nil)
    }

    @Test func `control characters are removed from a device's name`() throws {
        try write("\u{1b}[2Jevil\u{202e} \u{7}name\n", to: "1-2/product")
        #expect(SystemFiles.modelName(of: "1-2", devices: root) == "[2Jevil name")
    }

    @Test func `an interface's driver is found in any configuration`() throws {
        try link("../../../../bus/usb/drivers/usb-storage", at: "1-2:1.0/driver")
        try link("../../../../bus/usb/drivers/usbfs", at: "1-2:2.1/driver")
        #expect(SystemFiles.driver(ofInterface: 0, of: "1-2", devices: root) == "usb-storage")
        #expect(SystemFiles.driver(ofInterface: 1, of: "1-2", devices: root) == "usbfs")
        #expect(SystemFiles.driver(ofInterface: 2, of: "1-2", devices: root) == nil)
    }

    @Test func `the programs that have a node open are named`() throws {
        try write("qemu-system-x86\n", to: "4000001/comm")
        try link("/dev/bus/usb/001/004", at: "4000001/fd/7")
        try write("other\n", to: "4000002/comm")
        try link("/dev/bus/usb/001/005", at: "4000002/fd/7")
        #expect(
            SystemFiles.holders(ofNode: "/dev/bus/usb/001/004", processes: root)
                == ["qemu-system-x86 (process 4000001)"])
    }
}
