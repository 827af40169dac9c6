// SPDX-License-Identifier: Apache-2.0

import Platform
import Testing
import VFIOClient
import VFIOUser

@Suite("conversations of the known clients")
struct ClientTests {
    let harness: Harness
    var device: TestDevice { harness.device }

    init() throws { harness = try Harness() }

    @Test("Cloud Hypervisor starts, runs and ejects the device", arguments: [false, true])
    func cloudHypervisor(resetsFirst: Bool) throws {
        let memory = try SharedMemory(size: 1 << 20)
        let client = CloudHypervisorClient(
            wire: harness.client,
            memory: [
                .init(descriptor: memory.descriptor, address: 0, size: 1 << 19),
                .init(
                    descriptor: memory.descriptor, offset: 1 << 19, address: 1 << 32,
                    size: 1 << 19),
            ], resetsFirst: resetsFirst)
        try client.start()
        #expect(device.resets == (resetsFirst ? 1 : 0))
        #expect(client.regions.map(\.size) == device.regions.map(\.size))
        #expect(device.maps.map(\.address) == [0, 1 << 32])
        #expect(client.msix?.vectors == 20)

        try client.enableMSIX()
        #expect(device.events[2].allSatisfy { $0 != nil })
        device.events[2][17]?.signal()
        #expect(try client.waitForInterrupt(17))

        try client.writeRegister(0x20, UInt32(5))
        #expect(try client.readRegister(0x20, as: UInt32.self) == 5)

        try client.eject()
        #expect(device.maps.isEmpty)
        #expect(device.events[2].allSatisfy { $0 == nil })
        #expect(try harness.end() == .clientDisconnected)
    }

    @Test(
        "QEMU starts, posts writes, remaps memory and resets the device",
        arguments: [true, false])
    func qemu(isShared: Bool) throws {
        let memory = try SharedMemory(size: 1 << 20)
        let rom = try SharedMemory(size: 1 << 16)
        let client = QEMUClient(
            wire: harness.client,
            memory: [
                .init(address: 0, contents: memory, isShared: isShared),
                .init(address: 0xf_0000_0000, contents: rom, isShared: false, isWritable: false),
            ])
        try client.start()
        #expect(device.maps.map(\.hasFile) == [isShared, false])
        #expect(device.maps[1].access == .read)
        #expect(harness.connection?.servesMemory == true)

        try client.enableMSIX()
        device.events[2][3]?.signal()
        #expect(try client.waitForInterrupt(3))

        for value in UInt32(0)..<20 { try client.writeRegister(0x40, value) }
        try client.writeRegions([
            (region: 0, offset: 0x44, bytes: [1, 2, 3, 4]), (region: 0, offset: 0x48, bytes: [9]),
        ])
        #expect(try client.readRegister(0x40, as: UInt32.self) == 19)
        #expect(try client.readRegister(0x44, as: UInt64.self) == 0x09_0403_0201)

        try client.remove(address: 0xf_0000_0000)
        try client.add(.init(address: 0xf_0000_0000, contents: rom, isShared: false))
        try client.reset()
        #expect(device.resets == 1)
        try client.disableMSIX()
        client.kill()
        #expect(try harness.end() == .clientDisconnected)
    }
}
