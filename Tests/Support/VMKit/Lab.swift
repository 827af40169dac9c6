// SPDX-License-Identifier: Apache-2.0

public import Foundation

/// What one test works with: a folder of its own, images in it, servers and guests.
///
/// All of it ends with the test. A test suite keeps its lab in a property, so that nothing ends
/// before. With USBVFIOD_KEEP set, the folder with all logs stays and its name is printed.
public final class Lab {
    private let bed: Bed
    private let folder: URL
    private var servers: [Server] = []
    private var guests: [Guest] = []

    /// An empty lab, where the bed is ready.
    public init() throws {
        bed = try Bed.current.get()
        // Short, because the names of sockets are.
        folder = URL(filePath: "/tmp/usbvfiod-\(UInt32.random(in: 0 ... .max))")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    }

    deinit {
        guests.forEach { $0.kill() }
        servers.forEach { $0.kill() }
        if ProcessInfo.processInfo.environment["USBVFIOD_KEEP"] != nil {
            print("kept \(folder.path)")
        } else {
            try? FileManager.default.removeItem(at: folder)
        }
    }

    /// A new image with random contents, so that no block of it can be taken for another.
    public func image(mebibytes: Int) throws -> DiskImage {
        let path = folder.appending(path: "image-\(UInt32.random(in: 0 ... .max))").path
        try CompletedProgram.firstLine(
            of: "sh", "-c", "head -c \(mebibytes)M /dev/urandom >'\(path)'")
        return DiskImage(path: path)
    }

    /// Starts usbvfiod with these devices and waits until it is up.
    public func serve(_ devices: String...) throws -> Server { try serve(devices) }

    /// The same, with as many devices as there are in a list.
    public func serve(_ devices: [String]) throws -> Server {
        let server = try Server(
            devices: devices, folder: makeFolder("server-\(servers.count + 1)"))
        servers.append(server)
        return server
    }

    /// Boots a guest and waits until it takes commands.
    public func boot(_ machine: Machine) throws -> Guest {
        let guest = try Guest(machine, bed: bed, folder: makeFolder("guest-\(guests.count + 1)"))
        guests.append(guest)
        return guest
    }

    /// Boots a guest whose USB controller is what the server serves.
    public func boot(_ kernel: Kernel, with server: Server) throws -> Guest {
        try boot(Machine(kernel, devices: [.usbvfiod(server.socket)]))
    }

    /// Boots a guest that is a host itself, with USB devices of its own.
    public func bootHost(_ kernel: Kernel, devices: [Machine.Device]) throws -> GuestHost {
        try GuestHost(self, kernel, devices: devices)
    }

    /// A folder in which guests may find files, as /mnt/NAME.
    public func makeFolder(_ name: String) throws -> String {
        let url = folder.appending(path: name)
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        return url.path
    }
}

/// The contents of a disk, as a file on this host.
public struct DiskImage: Sendable {
    /// The file.
    public let path: String

    /// The SHA-256 of all of it, or of its first `mebibytes`.
    public func checksum(mebibytes: Int? = nil) throws -> String {
        let source = mebibytes.map { "head -c \($0)M '\(path)'" } ?? "cat '\(path)'"
        return try CompletedProgram.firstLine(
            of: "sh", "-c", "\(source) | sha256sum | cut -d' ' -f1")
    }

    /// Its first `count` bytes.
    public func prefix(_ count: Int) throws -> Data {
        let file = try FileHandle(forReadingFrom: URL(filePath: path))
        return try file.read(upToCount: count) ?? Data()
    }
}
