// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Logging
import Platform
import Testing

@testable import HostUSB

/// The libusb context and the threads that the `host:` backends of one program share.
struct HostUSBServicesTests {
    @Test func `the backends of a program share threads, which end with the last backend`() throws {
        let environment = BackendContext(loop: try EpollLoop(), logger: Logger(label: "test"))
        func makeBackend(_ text: String) throws -> HostBackend {
            try HostBackend(DeviceSpecification(parsing: text), context: environment)
        }
        weak var services: HostUSBServices?
        do {
            let first = try makeBackend("host:port=250-1")
            let second = try makeBackend("host:port=250-2")
            services = first.services
            #expect(first.services === second.services)
            #expect(first.services.threads.threadCount == 1)
            if SystemFiles.hasUdev { #expect(first.context === second.context) }
        }
        #expect(services == nil)
    }

    @Test func `backends of different programs share nothing`() throws {
        let loop = try EpollLoop()
        func makeBackend() throws -> HostBackend {
            try HostBackend(
                DeviceSpecification(parsing: "host:port=250-1"),
                context: BackendContext(loop: loop, logger: Logger(label: "test")))
        }
        #expect(try makeBackend().services !== makeBackend().services)
    }

    @Test func `one context serves all backends, for as long as there is one`() throws {
        let services = try HostUSBServices(loop: ManualLoop())
        weak var context: LibUSBContext?
        do {
            let first = try services.context(hasHotplug: true)
            context = first
            #expect(try services.context(hasHotplug: true) === first)
        }
        #expect(context == nil)
    }

    /// Without hotplug, a context knows only the devices that were connected when it was made.
    @Test func `without hotplug each backend has a context of its own`() throws {
        let services = try HostUSBServices(loop: ManualLoop())
        let first = try services.context(hasHotplug: false)
        #expect(try services.context(hasHotplug: false) !== first)
    }
}
