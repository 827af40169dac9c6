// SPDX-License-Identifier: Apache-2.0

import Platform
import Testing
import VFIOClient
import VFIOUser

@Suite("description of the device")
struct DescriptionTests {
    let harness: Harness

    init() throws { harness = try Harness.ready() }

    @Test("DEVICE_GET_INFO reports nine regions and five interrupt types")
    func deviceInfo() throws {
        let answer = try harness.exchange(
            hex(
                """
                0500 0400 20000000 00000000 00000000  # number 5, DEVICE_GET_INFO, 32 bytes
                20000000 00000000 00000000 00000000   # argsz counts the header, as rust-vmm does
                """))
        #expect(
            answer
                == hex(
                    """
                    0500 0400 20000000 01000000 00000000  # a reply of 32 bytes
                    10000000                              # argsz 16
                    03000000                              # PCI, can be reset
                    09000000 05000000                     # regions, interrupt types
                    """))
    }

    @Test("argsz is ignored", arguments: [0, 1, 16, 32, UInt32.max])
    func argsz(value: UInt32) throws {
        let reply = try harness.client.request(4, WireMessage.getInfo(argsz: value))
        #expect(!reply.isError && reply.size == 32)
    }

    @Test("DEVICE_GET_REGION_INFO reports size and permitted access")
    func regionInfo() throws {
        let answer = try harness.exchange(
            hex(
                """
                0600 0500 30000000 00000000 00000000  # number 6, GET_REGION_INFO, 48 bytes
                20000000 00000000 07000000 00000000   # argsz 32, region 7
                0000000000000000 0000000000000000
                """))
        #expect(
            answer
                == hex(
                    """
                    0600 0500 30000000 01000000 00000000
                    20000000 03000000 07000000 00000000   # argsz 32, read and write, no capabilities
                    0010000000000000 0000000000000000     # 4096 bytes
                    """))
    }

    @Test("a region that is only readable or writable is described so")
    func access() throws {
        let readOnly = try harness.client.request(
            5, WireMessage.regionInfo(index: UInt32(TestDevice.readOnly)))
        let writeOnly = try harness.client.request(
            5, WireMessage.regionInfo(index: UInt32(TestDevice.writeOnly)))
        #expect(readOnly.payload.integer(UInt32.self, at: 4) == 1)
        #expect(writeOnly.payload.integer(UInt32.self, at: 4) == 2)
    }

    @Test(
        "an absent region has size 0 and is no error",
        arguments: [1, 6, 8, 9, 99, UInt32.max])
    func absentRegion(index: UInt32) throws {
        let reply = try harness.client.request(5, WireMessage.regionInfo(index: index))
        #expect(!reply.isError && reply.size == 48)
        #expect(reply.payload.integer(UInt64.self, at: 16) == 0)
        #expect(reply.payload.integer(UInt32.self, at: 4) == 0)
        #expect(reply.payload.integer(UInt32.self, at: 8) == index)
    }

    @Test("GET_REGION_IO_FDS reports no sub-region")
    func regionDescriptors() throws {
        let reply = try harness.client.request(6, WireMessage.irqInfo(index: 0))
        #expect(!reply.isError)
        #expect(reply.payload == hex("10000000 00000000 00000000 00000000"))
        let unknown = try harness.client.request(6, WireMessage.irqInfo(index: 9))
        #expect(unknown.isError && unknown.error == 22)
    }

    @Test("DEVICE_GET_IRQ_INFO reports the number of vectors")
    func interruptInfo() throws {
        let answer = try harness.exchange(
            hex(
                """
                0800 0700 20000000 00000000 00000000  # number 8, GET_IRQ_INFO, 32 bytes
                10000000 00000000 02000000 00000000   # argsz 16, MSI-X
                """))
        #expect(
            answer
                == hex(
                    """
                    0800 0700 20000000 01000000 00000000
                    10000000 03000000 02000000 14000000   # eventfd, maskable, 20 vectors
                    """))
    }

    @Test(
        "an absent interrupt type has no vectors and is no error",
        arguments: [0, 3, 4, 5, UInt32.max])
    func absentInterrupt(index: UInt32) throws {
        let reply = try harness.client.request(7, WireMessage.irqInfo(index: index))
        #expect(!reply.isError && reply.size == 32)
        #expect(
            reply.payload == Array(littleEndian: UInt32(16)) + Array(littleEndian: UInt32(0))
                + Array(littleEndian: index) + Array(littleEndian: UInt32(0)))
    }

    @Test("a short request is refused", arguments: [4, 5, 6, 7])
    func tooShort(command: UInt16) throws {
        let size = command == 5 ? 32 : 16
        let short = try harness.client.request(command, [UInt8](repeating: 0, count: size - 1))
        #expect(short.isError && short.error == 22 && short.size == 16)
        let enough = try harness.client.request(command, [UInt8](repeating: 0, count: size))
        #expect(!enough.isError)
        let more = try harness.client.request(command, [UInt8](repeating: 0, count: size + 1))
        #expect(!more.isError)
    }

    @Test("DEVICE_RESET resets the device, any number of times")
    func reset() throws {
        for _ in 0..<3 {
            let reply = try harness.client.request(13)
            #expect(!reply.isError && reply.size == 16)
        }
        #expect(harness.device.resets == 3)
    }

    @Test("DEVICE_FEATURE fails with ENOTTY, as for a device without the feature")
    func feature() throws {
        let reply = try harness.client.request(16, hex("10000000 01000100"))
        #expect(reply.isError && reply.error == 25)  // ENOTTY
    }

    @Test(
        "commands that the server does not implement are refused", arguments: [11, 12, 14, 17, 18])
    func notSupported(command: UInt16) throws {
        let reply = try harness.client.request(command, [UInt8](repeating: 0, count: 32))
        #expect(reply.isError && reply.error == 95 && reply.size == 16)  // ENOTSUP
    }

    @Test("unknown commands are refused", arguments: [0, 19, 20, 255, UInt16.max])
    func unknown(command: UInt16) throws {
        let reply = try harness.client.request(command, [1, 2, 3])
        #expect(reply.isError && reply.error == 38 && reply.size == 16)  // ENOSYS
        #expect(try harness.isAlive())
    }

    @Test(
        "a request with the no-reply flag gets no reply",
        arguments: [2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 15, 16, 99])
    func noReply(command: UInt16) throws {
        for payload in [[], [UInt8](repeating: 0, count: 64)] {
            try harness.client.send(
                WireMessage(
                    id: 1, command: command, flags: WireMessage.noReply, payload: payload))
        }
        // The next answer belongs to the next request.
        #expect(try harness.isAlive())
    }
}
